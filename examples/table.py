"""Plain text tables on standard output."""

from collections.abc import Sequence

from rquant.table import text_table


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """The first `left` columns are text, the rest are numbers and stand to the right."""
    print(f"\n{title}\n")
    print(text_table(header, rows, left))
