"""What an observer is, for those of rquant and anybody's."""

from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from ..qtypes import QType

Range = tuple[float, float]
State = dict[str, Tensor]
Self = TypeVar("Self", bound="Observer")


@runtime_checkable
class Observer(Protocol):
    """Five methods; no base class is needed. A factory (`lambda: Mine()`) is what `Calibration(method=...)` takes.

    `update` sees float tensors of any shape, dtype and device; `range` is asked after the last of them.
    """

    def update(self, x: Tensor) -> None:
        """Take note of a batch. Raises ValueError that names the first NaN or infinity, and has then taken none."""

    def range(self, qtype: QType | str = ..., symmetric: bool = ...) -> Range:
        """`(lo, hi)` with lo <= 0 <= hi; `(-a, a)` if symmetric. Values beyond it are clipped.

        Codes go from `-qtype.qmax` to `qtype.qmax`. Raises ValueError before the first value.
        """
        ...

    def merge(self: Self, other: Self) -> None:
        """Know also what `other` has seen, as if its batches had come after."""

    def state_dict(self) -> State:
        """All it knows, as tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Know that instead. Raises ValueError for a state that is none of its kind."""
