"""What share of the machine's limits rquant's kernels reach, goal by goal, out of what bench_linear.py measured.

    python benches/linear_goals.py --limits benches/results/limits.json benches/results/linear-*t-*.json

The share is max(bytes / bandwidth, operations / peak) over the time of a whole call; weights come from memory. A goal is a
class, a scheme and a number of rows over the three 4096-class layers: the median over them, the least and the most.
"""

import argparse
import json
from pathlib import Path
from statistics import median

from linear_table import rows_of

# kind, scheme, m, share of the limit, times the best peer of the group size
GOALS = [
    ("int8-integer", "rquant-int8", 1, 0.90, 1.0),
    ("int4-integer", "rquant-int4-g128", 1, 0.85, 1.25),
    ("int2-integer", "rquant-int2-g64", 1, 0.80, 1.5),
    ("int8-integer", "rquant-int8", 4, 0.75, 1.2),
    ("int4-integer", "rquant-int4-g128", 4, 0.75, 1.2),
    ("int2-integer", "rquant-int2-g64", 4, 0.75, 1.2),
    ("int8-integer", "rquant-int8", 64, 0.75, 1.15),
    ("int8-integer", "rquant-int8", 512, 0.85, 1.15),
    ("int4-integer", "rquant-int4-g128", 64, 0.60, 1.5),
    ("int4-integer", "rquant-int4-g128", 512, 0.72, 1.5),
    ("int4-integer", "rquant-int4-g32", 64, 0.50, 1.8),
    ("int4-integer", "rquant-int4-g32", 512, 0.58, 1.8),
    ("int2-integer", "rquant-int2-g64", 64, 0.60, 1.5),
    ("int2-integer", "rquant-int2-g64", 512, 0.72, 1.5),
    ("int8-float", "rquant-int8", 1, 0.80, 1.0),
    ("int4-float", "rquant-int4-g64", 1, 0.80, 1.0),
    ("int8-float", "rquant-int8", 64, 0.85, 1.0),
    ("int8-float", "rquant-int8", 512, 0.85, 1.0),
    ("int4-float", "rquant-int4-g64", 512, 0.85, 1.0),
    ("int4-float", "rquant-int4-g64-bf16", 1, 0.80, 1.0),
    ("int4-float", "rquant-int4-g64-bf16", 512, 0.85, 1.0),
]


def span(values: list[float], form: str) -> str:
    """Median (least to most)."""
    if not values:
        return "-"
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--limits", type=Path, required=True)
    args = parser.parse_args()
    limits = json.loads(args.limits.read_text())
    cells = [cell for file in args.files for cell in json.loads(file.read_text())["cells"]]
    rows = [
        row
        for cell in cells
        if min(cell["cell"]["k"], cell["cell"]["n"]) >= 4096
        for row in rows_of(cell, limits)
    ]
    print("| class | scheme | m | threads | share of limit | goal | to the best peer | goal |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, name, m, share, ratio in GOALS:
        for threads in sorted({row.cell["threads"] for row in rows}):
            where = {"kind": kind, "m": m, "threads": threads}
            found = [r for r in rows if r.name == name and where.items() <= r.cell.items()]
            if found:
                shares = span([r.limit for r in found if r.limit], ".0%")
                ratios = span([r.to_peer for r in found if r.to_peer], ".2f")
                print(f"| {kind} | {name} | {m} | {threads} | {shares} | {share:.0%} | {ratios} | {ratio} |")


if __name__ == "__main__":
    main()
