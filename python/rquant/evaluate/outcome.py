"""What an evaluation or a benchmark found: a table, JSON with a version, bars."""

import json
import math
from dataclasses import dataclass
from typing import Any

from .._rquant import __version__
from ..info import backend_info
from ..table import text_table
from ..viz import Bars
from .layers import Sensitivity

FORMAT = 1
"""Of the JSON; it grows when a field changes its meaning or goes."""


@dataclass(frozen=True)
class Column:
    """A figure of each row: `key` in JSON, `title` in the table, `show` how it is written there, in units of `unit`; `bars`: worth a
    picture; `log`: on a logarithmic axis where values are far apart."""

    key: str
    title: str
    show: str = "{:.2f}"
    unit: float = 1.0
    bars: bool = False
    log: bool = False

    def text(self, value: float | None) -> str:
        """For a table."""
        return "" if value is None else self.show.format(value / self.unit)


@dataclass(frozen=True)
class Outcome:
    """Rows of figures, one a scheme, in order. `settings`: what else a reader needs to take them again, in JSON types.

    `layers`: for each scheme its layers' errors.
    """

    kind: str
    model: str
    settings: dict[str, Any]
    columns: tuple[Column, ...]
    rows: dict[str, dict[str, float | None]]
    layers: dict[str, Sensitivity]

    def table(self) -> str:
        """Plain text."""
        header = ["scheme", *(column.title for column in self.columns)]
        return text_table(header, self.cells())

    def cells(self) -> list[list[str]]:
        """The table's rows."""
        return [[name, *(c.text(row.get(c.key)) for c in self.columns)] for name, row in self.rows.items()]

    def bars(self) -> list[Bars]:
        """A panel for each column that is worth one."""
        panels = []
        for column in self.columns:
            values = {name: row.get(column.key) for name, row in self.rows.items()}
            known = {
                name: v / column.unit for name, v in values.items() if v is not None and math.isfinite(v)
            }
            if column.bars and known:
                far = min(known.values()) > 0 and max(known.values()) > 20 * min(known.values())
                panels.append(Bars(column.title, known, log=column.log and far))
        return panels

    def to_json(self) -> str:
        """`format`, `kind`, `rquant`, `model`, `machine`, `settings`, `rows`, `layers`; what is not finite is null."""
        rows = [{"scheme": name, **_finite(row)} for name, row in self.rows.items()]
        told = {
            "format": FORMAT,
            "kind": self.kind,
            "rquant": __version__,
            "model": self.model,
            "machine": backend_info(),
            "settings": self.settings,
            "rows": rows,
            "layers": {name: found.to_dict() for name, found in self.layers.items()},
        }
        return json.dumps(told, indent=2, allow_nan=False) + "\n"

    def __str__(self) -> str:
        return self.table()


def _finite(row: dict[str, float | None]) -> dict[str, float | None]:
    return {key: v if v is not None and math.isfinite(v) else None for key, v in row.items()}
