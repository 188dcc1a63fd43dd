"""The ends of what was seen: of all of it, or averaged over batches."""

import math

from torch import Tensor

from .._native import observe as native
from ..qtypes import QType, qint8
from .observer import Range, State
from .values import largest_code, numbers, scalar, watch, widened


class MinMax:
    """From the least to the largest of all values: nothing is clipped, and one outlier makes every step wider."""

    def __init__(self) -> None:
        self.lo, self.hi = math.inf, -math.inf

    def update(self, x: Tensor) -> None:
        """O(n)."""
        extent = watch(x, native.extent)
        if extent is not None:
            self.include(*extent)

    def include(self, lo: float, hi: float) -> None:
        """A batch of which these are the ends."""
        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)

    def range(self, qtype: QType | str = qint8, symmetric: bool = False) -> Range:
        """All values and 0."""
        largest_code(qtype)
        return widened((self.lo, self.hi) if self.lo <= self.hi else None, symmetric)

    def merge(self, other: "MinMax") -> None:
        """The wider of both."""
        self.include(other.lo, other.hi)

    def state_dict(self) -> State:
        """`lo`, `hi`."""
        return {"lo": scalar(self.lo), "hi": scalar(self.hi)}

    def load_state_dict(self, state: State) -> None:
        """Raises ValueError for other names."""
        self.lo, self.hi = numbers(state, ("lo", "hi"), "MinMax")


class MovingAverage:
    """The ends of the batches, averaged with less and less weight for older ones: `m = momentum m + (1 - momentum) x`.

    The first batch begins the average. `momentum` is quanto's; torch.ao's averaging constant is `1 - momentum`.
    Raises ValueError for a momentum that is not in [0, 1].
    """

    def __init__(self, momentum: float = 0.9) -> None:
        if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not 0 <= momentum <= 1:
            raise ValueError(f"momentum: expected a number from 0 to 1, got {momentum!r}")
        self.momentum = momentum
        self.batches = 0
        self._first = self._average = (0.0, 0.0)

    def update(self, x: Tensor) -> None:
        """O(n). A batch without elements is none."""
        extent = watch(x, native.extent)
        if extent is not None:
            self.include(*extent)

    def include(self, lo: float, hi: float) -> None:
        """A batch of which these are the ends."""
        if not self.batches:
            self._first = self._average = lo, hi
        else:
            c, (old_lo, old_hi) = self.momentum, self._average
            self._average = c * old_lo + (1 - c) * lo, c * old_hi + (1 - c) * hi
        self.batches += 1

    def range(self, qtype: QType | str = qint8, symmetric: bool = False) -> Range:
        """The averages, and 0."""
        largest_code(qtype)
        return widened(self._average if self.batches else None, symmetric)

    def merge(self, other: "MovingAverage") -> None:
        """As if the batches of `other` had come after. Raises ValueError for another momentum."""
        if other.momentum != self.momentum:
            raise ValueError(f"other: expected momentum {self.momentum}, got {other.momentum}")
        if not other.batches:
            return
        if not self.batches:
            self._first, self._average, self.batches = other._first, other._average, other.batches
            return
        # the first batch of other has begun an average there; here it would have been one of many
        old = self.momentum**other.batches
        lo, hi = (
            mine + old * (before - first)
            for mine, before, first in zip(other._average, self._average, other._first, strict=True)
        )
        self._average = lo, hi
        self.batches += other.batches

    def state_dict(self) -> State:
        """The averages, the ends of the first batch, the number of batches, the momentum."""
        values = (*self._average, *self._first, self.batches, self.momentum)
        return {name: scalar(value) for name, value in zip(self._STATE, values, strict=True)}

    def load_state_dict(self, state: State) -> None:
        """Raises ValueError for other names, and another momentum."""
        lo, hi, first_lo, first_hi, batches, momentum = numbers(state, self._STATE, "MovingAverage")
        if momentum != self.momentum:
            raise ValueError(f"state: expected momentum {self.momentum}, got {momentum}")
        self._average, self._first, self.batches = (lo, hi), (first_lo, first_hi), int(batches)

    _STATE = ("lo", "hi", "first_lo", "first_hi", "batches", "momentum")
