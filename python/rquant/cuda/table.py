"""Which way a product takes for how many rows of x: as `tune` has measured it on this very device, else estimated.

A route is a way to compute x @ W.T; `routes` has them:

| route | of | by |
|---|---|---|
| small | float16, bfloat16 | the kernel for up to 8 rows |
| tiled | float16, bfloat16 | the kernel of tiles |
| dequantize | float16, bfloat16 | the weight as floats, then torch's matrix product |
| integer | int8 | the kernel of int8 activations |
| int_mm | int8 | codes as int8, `torch._int_mm`, and the scales after it |
"""

import json
import math
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from .. import _rquant
from ..io.atomic import write_file
from .compiler import cache_folder
from .driver import device_name

FORMAT = 1
ROUTES = {
    "float16": ("small", "tiled", "dequantize"),
    "bfloat16": ("small", "tiled", "dequantize"),
    "int8": ("integer", "int_mm"),
}
"""What x is multiplied as, and the routes there are for it."""
MOST_SMALL = 8
"""Rows that "small" takes."""
Crossovers = tuple[tuple[int | None, str], ...]
"""`(most rows, route)` in order; the last has no most."""
ESTIMATED: dict[str, Crossovers] = {
    "float16": ((MOST_SMALL, "small"), (128, "tiled"), (None, "dequantize")),
    "bfloat16": ((MOST_SMALL, "small"), (128, "tiled"), (None, "dequantize")),
    "int8": ((None, "integer"),),
}
"""Where nothing was measured: from limits of memory and tensor cores. Up to some 100 rows a product reads a quarter of the
bytes that float16 weights have; beyond, torch's product is nearer to the tensor cores' peak than ours."""


@dataclass(frozen=True)
class Cell:
    """What was measured of one weight: `[n, k]` of `bits`, in groups of `group_size` (-1: one a row)."""

    arithmetic: str
    bits: int
    group_size: int
    n: int
    k: int
    crossovers: Crossovers
    microseconds: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """Of a call, by rows and route."""


class Table:
    """Crossovers by weight: those of the most similar one that was measured."""

    def __init__(self, cells: Iterable[Cell] = ()) -> None:
        self.cells = tuple(cells)
        self._found: dict[tuple[str, int, int, int, int], Crossovers] = {}

    def crossovers(self, arithmetic: str, bits: int, group_size: int, n: int, k: int) -> Crossovers:
        """Measured with these bits on a weight of the nearest group size and, among those, the nearest size; else estimated."""
        key = arithmetic, bits, group_size, n, k
        if key not in self._found:
            group = _length(group_size, k)

            def distance(cell: Cell) -> tuple[float, float]:
                other = _length(cell.group_size, cell.k)
                sizes = abs(math.log(cell.n * cell.k / max(n * k, 1)))
                # as many groups a row, or a row's one, is what matters of them
                return 0.0 if (cell.group_size, group_size) == (-1, -1) else abs(
                    math.log(other / group)
                ), sizes

            fitting = [cell for cell in self.cells if (cell.arithmetic, cell.bits) == (arithmetic, bits)]
            nearest = min(fitting, key=distance, default=None)
            self._found[key] = ESTIMATED[arithmetic] if nearest is None else nearest.crossovers
        return self._found[key]

    def route(self, arithmetic: str, bits: int, group_size: int, n: int, k: int, rows: int) -> str:
        """The way to take."""
        for most, route in self.crossovers(arithmetic, bits, group_size, n, k):
            if most is None or rows <= most:
                return route
        raise AssertionError("the last route has no most")  # `checked` and `crossovers_of` see to it


def _length(group_size: int, k: int) -> int:
    return max(k, 1) if group_size == -1 else group_size


def crossovers_of(microseconds: Mapping[int, Mapping[str, float]], gain: float = 0.03) -> Crossovers:
    """From times by rows and route. A route is left only for one that is faster by `gain`: less is noise."""
    found: list[tuple[int, str]] = []
    for rows, times in sorted(microseconds.items()):
        best = min(times, key=times.__getitem__)
        before = found[-1][1] if found else best
        if before in times and times[best] > (1 - gain) * times[before]:
            best = before
        if found and best == before:
            found.pop()
        found.append((rows, best))
    *others, last = found
    return (*others, (None, last[1]))


def versions() -> dict[str, str]:
    """What a measurement holds for besides the device."""
    torch: Any = sys.modules.get("torch")
    cuda = getattr(getattr(torch, "version", None), "cuda", None)
    return {
        "rquant": _rquant.__version__,
        "torch": str(getattr(torch, "__version__", None)),
        "cuda": str(cuda),
    }


def path_of(device: str, folder: Path | None = None) -> Path:
    """The file of a device's table, by its name and the versions of rquant, torch and CUDA."""
    state = sha256(json.dumps([device, versions()], sort_keys=True).encode()).hexdigest()[:16]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-").lower()
    return (folder or cache_folder()) / f"routes.{slug}.{state}.json"


def write(table: Table, device: str, folder: Path | None = None) -> Path:
    """Keep the table for other processes, whole or not at all; its file. Raises OSError."""
    path = path_of(device, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [
        {**vars(cell), "microseconds": {str(m): t for m, t in cell.microseconds.items()}}
        for cell in table.cells
    ]
    content = {"format": FORMAT, "device": device, "versions": versions(), "cells": cells}
    write_file(path, json.dumps(content, indent=1))
    return path


def read(path: Path) -> Table:
    """The table of a file. Raises OSError, and ValueError that says what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"expected a table of format {FORMAT}")
    try:
        return Table(_checked(cell) for cell in content["cells"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"expected cells of a table: {type(error).__name__} {error}") from None


def _checked(given: dict[str, Any]) -> Cell:
    routes = ROUTES.get(given["arithmetic"])
    if routes is None:
        raise ValueError(f"arithmetic: expected one of {', '.join(ROUTES)}, got {given['arithmetic']!r}")
    sizes = [given[name] for name in ("bits", "group_size", "n", "k")]
    if not all(type(size) is int and (size > 0 or size == -1) for size in sizes) or min(sizes[2:]) < 1:
        raise ValueError(f"bits, group_size, n, k: expected sizes, got {sizes}")
    crossovers = tuple((most, route) for most, route in given["crossovers"])
    mosts = [most for most, _ in crossovers]
    rising = all(type(most) is int for most in mosts[:-1]) and mosts[:-1] == sorted(set(mosts[:-1]))
    if (
        not mosts
        or mosts[-1] is not None
        or not rising
        or not all(route in routes for _, route in crossovers)
    ):
        raise ValueError(
            f"crossovers: expected rising rows, then null, each with one of {routes}, got {crossovers}"
        )
    times = {int(m): dict(times) for m, times in given.get("microseconds", {}).items()}
    bits, group_size, n, k = sizes
    return Cell(given["arithmetic"], bits, group_size, n, k, crossovers, times)


@lru_cache(maxsize=64)
def of_device(index: int) -> Table:
    """The table for device `index`: read from the cache folder, once; without a good one the estimates."""
    path = path_of(device_name(index))
    try:
        return read(path)
    except FileNotFoundError:
        return Table()
    except (OSError, ValueError) as error:
        warnings.warn(
            f"rquant ignores {path} ({error}): products on {device_name(index)} take the routes that are estimated; "
            "`python -m rquant.cuda.tune` measures them anew",
            stacklevel=2,
        )
        return Table()
