"""What each method would make of a model's activations, as a table and as pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..observers.observer import Range
from ..table import text_table
from .choice import method_name
from .statistics import Spot, Statistics
from .tensor import FROM_COUNTS, TensorStatistics


@dataclass(frozen=True)
class Row:
    """A place: how many values it has seen, the method chosen for it, and of each method the range and the signal to noise
    ratio in dB that rounding by it is expected to have: `10 log10(E[x^2] / E[(x - x^)^2])`, 6 dB a bit."""

    name: str
    values: int
    chosen: str
    ranges: dict[str, Range]
    decibels: dict[str, float]


@dataclass(frozen=True)
class CalibrationReport:
    """`str()` is a table; the chosen method's cell has a star. `unseen` layers stay dynamic."""

    rows: list[Row]
    unseen: list[str]
    statistics: Statistics

    @classmethod
    def of(cls, statistics: Statistics, unseen: Sequence[str] = ()) -> "CalibrationReport":
        """Every method's range is searched anew."""
        rows = [_row(spot, tensor, statistics) for spot, tensor in statistics.tensors.items()]
        return cls(rows, list(unseen), statistics)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        names = ("name", "values", "chosen", "ranges", "decibels")
        return {"rows": [{n: getattr(row, n) for n in names} for row in self.rows], "unseen": self.unseen}

    def __str__(self) -> str:
        methods = list(dict.fromkeys(method for row in self.rows for method in row.ranges))
        table = [
            [row.name, f"{row.values:,}", *(_cell(row, method) for method in methods)] for row in self.rows
        ]
        lines = [text_table(["tensor", "values", *(f"{m}: range, dB" for m in methods)], table)]
        if self.unseen:
            lines.append(f"not seen, dynamic as before: {', '.join(self.unseen)}")
        return "\n".join(lines)

    def draw_ranges(self, names: Sequence[str] | None = None) -> Any:
        """A figure with a histogram for each of these tensors (all by default), and the ends of each method's range.

        Needs matplotlib. Raises ValueError for a name that is none.
        """
        from ..viz import Ranged, draw_ranges

        chosen = [row.name for row in self.rows] if names is None else list(names)
        if unknown := set(chosen) - {row.name for row in self.rows}:
            raise ValueError(f"names: expected names of tensors in the report, got {unknown.pop()!r}")
        tensors = {str(spot): tensor for spot, tensor in self.statistics.tensors.items()}
        panels = [
            Ranged(row.name, h.counts.tolist(), h.edges.tolist(), row.ranges, row.chosen)
            for row in self.rows
            if row.name in chosen
            for h in [tensors[row.name].histogram]
        ]
        return draw_ranges(panels)

    def draw_errors(self) -> Any:
        """A figure with a line for each method: the ratio in dB over the tensors, in the order they were first seen."""
        from ..viz import draw_lines

        methods = dict.fromkeys(method for row in self.rows for method in row.ranges)
        lines = {m: [row.decibels.get(m, math.nan) for row in self.rows] for m in methods}
        return draw_lines(lines, "tensor", "signal to noise, dB")


def _row(spot: Spot, tensor: TensorStatistics, statistics: Statistics) -> Row:
    chosen, symmetric = method_name(tensor.method), statistics.symmetric
    ranges = {m: tensor.range(m, statistics.percentile, symmetric) for m in FROM_COUNTS}
    if chosen not in ranges:
        ranges[chosen] = tensor.range(None, symmetric=symmetric)
    h = tensor.histogram
    centers = (h.edges[1:] + h.edges[:-1]) / 2
    power = (h.counts * centers.square()).sum().item() / max(h.total, 1)
    decibels = {m: _decibels(power, h.mean_squared_error(r, symmetric=symmetric)) for m, r in ranges.items()}
    return Row(str(spot), h.total, chosen, ranges, decibels)


def _decibels(power: float, error: float) -> float:
    return 10 * math.log10(power / error) if power > 0 and error > 0 else math.inf


def _cell(row: Row, method: str) -> str:
    if method not in row.ranges:
        return ""
    lo, hi = row.ranges[method]
    return f"{'*' if method == row.chosen else ''}{lo:.3g}..{hi:.3g} {row.decibels[method]:.1f}"
