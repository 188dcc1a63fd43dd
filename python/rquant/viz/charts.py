"""Pictures, with matplotlib: overlaid histograms; bars; lines. Each function returns a figure; `png` makes bytes of it."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .histogram import Histogram

# Blue and red as the literature draws before and after; told apart by the colour blind too.
BEFORE, AFTER = "#3b6fb6", "#d1495b"
OTHERS = ("#e08e0b", "#2a9d4a", "#7b52ab", "#555555", "#00a5a5", "#8c564b")


def require_matplotlib() -> Any:
    """matplotlib's Figure. Raises ImportError in one line that says how to get it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install 'rquant[viz]'") from None
    return Figure


def _figure(width: float, height: float) -> Any:
    """A figure of inches that belongs to no window and needs no closing."""
    return require_matplotlib()(figsize=(width, height), layout="constrained")


def png(figure: Any, dpi: int = 110) -> bytes:
    """The figure as a PNG file's bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def draw_histograms(before: Histogram, after: Mapping[str, Histogram], label: str = "original") -> Any:
    """One panel for each of `after`, over `before`: blue and red, by shares of the values."""
    figure = _figure(6.5 * len(after), 4.0)
    panels = figure.subplots(1, len(after), squeeze=False, sharey=True)[0]
    for axes, (name, hist) in zip(panels, after.items(), strict=True):
        for shown, h, colour in ((label, before, BEFORE), (name, hist, AFTER)):
            shares = (h.counts / h.count).tolist()
            axes.stairs(shares, h.edges.tolist(), fill=True, alpha=0.55, color=colour, label=shown)
        axes.set_title(f"{label} and {name}")
        axes.set_xlabel("weight")
        axes.legend()
    panels[0].set_ylabel("share of values a bin")
    return figure


@dataclass(frozen=True)
class Bars:
    """A panel: a title that says the unit, and a value for each label. `log`: a logarithmic axis, where values are far apart."""

    title: str
    values: Mapping[str, float]
    log: bool = False


def draw_bars(panels: Sequence[Bars]) -> Any:
    """Horizontal bars with their values written at them; two panels to a row."""
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    most = max(len(panel.values) for panel in panels)
    figure = _figure(6.5 * across, (1.0 + 0.34 * most) * down)
    grid = figure.subplots(down, across, squeeze=False).flat
    for panel, axes in zip(panels, grid, strict=False):
        labels, values = list(panel.values), list(panel.values.values())
        bars = axes.barh(range(len(values)), values, color=BEFORE, log=panel.log)
        axes.bar_label(bars, labels=[f"{value:,.4g}" for value in values], padding=3, fontsize=8)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.invert_yaxis()  # the first on top, as in the table
        axes.margins(x=0.18)
        axes.set_title(panel.title, fontsize=10)
    for axes in grid:  # one is left over where panels are odd
        axes.axis("off")
    return figure


def draw_lines(lines: Mapping[str, Sequence[float]], across: str, up: str) -> Any:
    """A line for each name over 0, 1, 2, ...; what is not finite leaves a gap."""
    figure = _figure(10.0, 4.0)
    axes = figure.subplots()
    for name, values in lines.items():
        shown = [value if math.isfinite(value) else math.nan for value in values]
        axes.plot(range(len(shown)), shown, marker=".", linewidth=1, label=name)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


@dataclass(frozen=True)
class Ranged:
    """A panel: counts of values, the edges of their bins (one more), and ranges by name, of which one is `chosen`."""

    title: str
    counts: Sequence[int]
    edges: Sequence[float]
    ranges: Mapping[str, tuple[float, float]]
    chosen: str


def draw_ranges(panels: Sequence[Ranged]) -> Any:
    """Histograms over a logarithmic axis, with both ends of each range; two panels to a row."""
    across = max(min(2, len(panels)), 1)
    down = max(-(-len(panels) // across), 1)
    figure = _figure(6.5 * across, 3.2 * down)
    grid = figure.subplots(down, across, squeeze=False).flat
    for panel, axes in zip(panels, grid, strict=False):
        filled = [i for i, count in enumerate(panel.counts) if count]
        first, last = (filled[0], filled[-1] + 1) if filled else (0, 1)
        axes.stairs(
            panel.counts[first:last], panel.edges[first : last + 1], fill=True, alpha=0.55, color=BEFORE
        )
        axes.set_yscale("log", nonpositive="clip")
        for i, (name, ends) in enumerate(panel.ranges.items()):
            style = {"color": OTHERS[i % len(OTHERS)], "linestyle": ":"}
            if name == panel.chosen:
                style = {"color": AFTER, "linestyle": "-"}
            for end, label in zip(ends, (name, None), strict=True):
                axes.axvline(end, label=label, **style)
        axes.set_title(panel.title, fontsize=10)
        axes.legend(fontsize=7)
    for axes in grid:  # one is left over where panels are odd
        axes.axis("off")
    return figure
