"""Progress bars on standard error, if that is a terminal, tqdm is installed and the work takes more than a second."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")


class _NoBar:
    """What is left of a bar without tqdm."""

    def update(self, n: int = 1) -> None:
        """Nothing."""

    def set_description(self, desc: str) -> None:
        """Nothing."""

    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing."""


def bar(total: int, what: str) -> Any:
    """A bar of `total` steps, as a context: `update()` is a step done, `set_description(what)` the next kind of work."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return _NoBar()
    return tqdm(total=total, desc=what, delay=1, leave=False, disable=None)


def each(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items, with a bar that moves as they are taken."""
    with bar(len(items), what) as shown:
        for item in items:
            yield item
            shown.update()
