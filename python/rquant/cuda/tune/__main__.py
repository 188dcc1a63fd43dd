"""`python -m rquant.cuda.tune`: measure this device's crossovers and keep them in the cache folder."""

import argparse
import sys

from ...table import text_table
from .. import table
from ..compiler import cache_folder
from . import BITS, GROUP_SIZES, ROWS, SHAPES, tune


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rquant.cuda.tune", description=__doc__)
    parser.add_argument("--device", help="as cuda:1; torch's current one without")
    parser.add_argument("--bits", type=int, nargs="+", default=BITS, choices=BITS)
    parser.add_argument(
        "--group-size", type=int, nargs="+", default=GROUP_SIZES, help="-1 is one group a row"
    )
    parser.add_argument(
        "--shape", nargs="+", default=["x".join(map(str, s)) for s in SHAPES], help="n x k, as 4096x4096"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    options = parser.parse_args(arguments)
    try:
        shapes = [_shape(text) for text in options.shape]
        found = tune(
            options.device,
            shapes=shapes,
            bits=options.bits,
            group_sizes=options.group_size,
            rows=sorted(options.rows),
        )
    except (RuntimeError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(shown(found))
    print(f"kept in {cache_folder()}")
    return 0


def shown(found: table.Table) -> str:
    """The crossovers as a text table."""
    rows = []
    for cell in found.cells:
        steps = [f"{route} to {most}" if most else route for most, route in cell.crossovers]
        group = "row" if cell.group_size == -1 else str(cell.group_size)
        rows.append([cell.arithmetic, f"int{cell.bits}", group, f"{cell.n}x{cell.k}", ", ".join(steps)])
    return text_table(["x", "weight", "group", "n x k", "rows of x"], rows, left=5)


def _shape(text: str) -> tuple[int, int]:
    n, x, k = text.partition("x")
    if not (x and n.isdecimal() and k.isdecimal() and int(n) and int(k)):
        raise ValueError(f"--shape: expected sizes as in 4096x4096, got {text!r}")
    return int(n), int(k)


if __name__ == "__main__":
    sys.exit(main())
