"""What `fold_bn` did."""

from dataclasses import dataclass

from ..table import text_table


@dataclass(frozen=True, slots=True)
class FoldRow:
    """One BatchNorm: the layer whose output it normalizes (None: of no single layer), and why it stays ("" if it is folded)."""

    name: str
    layer: str | None
    reason: str = ""


@dataclass(frozen=True)
class FoldReport:
    """`str()` is a table. `difference` is the largest change of an output on the sample, relative to the largest output."""

    rows: list[FoldRow]
    difference: float

    @property
    def folded(self) -> list[FoldRow]:
        """BatchNorms that are part of their layer now."""
        return [row for row in self.rows if not row.reason]

    @property
    def kept(self) -> list[FoldRow]:
        """BatchNorms that stay, each with its reason."""
        return [row for row in self.rows if row.reason]

    def table(self) -> str:
        """One line a BatchNorm."""
        lines = [(row.name or "(model)", row.layer or "", row.reason or "folded") for row in self.rows]
        return text_table(("BatchNorm", "after", ""), lines, left=3)

    def __str__(self) -> str:
        summary = f"{len(self.folded)} of {len(self.rows)} folded; outputs differ by {self.difference:.1e}"
        return "\n".join(([self.table()] if self.rows else []) + [summary])
