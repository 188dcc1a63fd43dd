"""Heat maps of how many times faster rquant is than the fastest peer: a panel for each class and number of threads."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import TwoSlopeNorm

LIMIT = 2.0  # octaves either way where the colours end


def panel(axes, rows: list, title: str):
    """Layers down, m across; in each the least ratio of the class's schemes."""
    layers = sorted({(r.cell["k"] * r.cell["n"], r.cell["k"], r.cell["n"], r.cell["weights"]) for r in rows})
    sizes = sorted({row.cell["m"] for row in rows})
    ratios = np.full((len(layers), len(sizes)), np.nan)
    for row in rows:
        if row.to_peer:
            c = row.cell
            at = layers.index((c["k"] * c["n"], c["k"], c["n"], c["weights"])), sizes.index(c["m"])
            ratios[at] = np.fmin(ratios[at], row.to_peer)
    norm = TwoSlopeNorm(0, -LIMIT, LIMIT)
    image = axes.imshow(np.log2(ratios), cmap="RdYlGn", norm=norm, aspect="auto")
    for (i, j), value in np.ndenumerate(ratios):
        if np.isfinite(value):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7)
    axes.set_xticks(range(len(sizes)), [f"m {m}" for m in sizes], fontsize=7)
    axes.set_yticks(range(len(layers)), [f"{k}x{n} {weights}" for _, k, n, weights in layers], fontsize=7)
    axes.set_title(title, fontsize=9)
    return image


def draw(rows: list, file: Path) -> None:
    """Write the picture of linear_table's rows."""
    kinds = sorted({row.cell["kind"] for row in rows})
    threads = sorted({row.cell["threads"] for row in rows})
    size = (5.5 * len(threads), 3.0 * len(kinds) + 0.8)
    figure, grid = plt.subplots(len(kinds), len(threads), figsize=size, squeeze=False, layout="constrained")
    for axes, (kind, count) in zip(grid.flat, [(k, t) for k in kinds for t in threads], strict=True):
        part = [row for row in rows if (row.cell["kind"], row.cell["threads"]) == (kind, count)]
        if not part:
            axes.axis("off")
            continue
        image = panel(axes, part, f"{kind}, {count} thread{'s' * (count > 1)}")
    bar = figure.colorbar(image, ax=grid, location="bottom", shrink=0.5, aspect=40)
    octaves = np.arange(-LIMIT, LIMIT + 1)
    bar.set_ticks(octaves, labels=[f"{2.0**o:g}x" for o in octaves])
    bar.set_label(
        "time of the fastest peer of the same class and group size / rquant's, the least of the schemes"
    )
    figure.savefig(file, dpi=110, bbox_inches="tight")
    plt.close(figure)
