"""A histogram that grows with what it sees, and the ranges that are found on it."""

from typing import Any

import torch
from torch import Tensor

from .. import _rquant
from .._native import observe as native
from ..qtypes import QType, qint8
from .observer import Range, State
from .values import largest_code, numbers, scalar, watch, widened

BINS = 2048


class Histogram:
    """Counts in bins of one width, a power of two, `bins` of them at least from the least to the largest value and 0.

    Beyond twice as many the width doubles and neighbours become one bin, so that every value is where it would be had the
    wider bins been there from the start: order, batches and processes change nothing. Exact zeros are counted apart. It
    keeps 16 bytes times `bins` whatever it sees, and `update` is O(n) on all of rquant's threads.

    Its `range` is that of all values; `Percentile`, `MSE` and `Entropy` are the same with another range.
    """

    def __init__(self, bins: int = BINS) -> None:
        if isinstance(bins, bool) or not isinstance(bins, int) or not 2 <= bins <= 1 << 19:
            raise ValueError(f"bins: expected an int from 2 to {1 << 19}, got {bins!r}")
        self.bins = bins
        self._native = _rquant.Histogram(2 * bins)

    def update(self, x: Tensor) -> None:
        """Count the values of x."""
        self.count(x)

    def count(self, x: Tensor) -> Range | None:
        """`update`, and the ends of x: None without elements."""
        return watch(x, lambda row: native.update(self._native, row))

    @property
    def counts(self) -> Tensor:
        """int64 `[2 * bins]`: values in each bin but for zeros, the lowest first; bins at the ends may be beyond all values."""
        return torch.from_numpy(native.counts(self._native, 2 * self.bins))

    @property
    def edges(self) -> Tensor:
        """float64 `[2 * bins + 1]`. Bins above 0 have their lower edge in them, those below the upper one."""
        width, first = self._native.grid()
        return first + width * torch.arange(2 * self.bins + 1, dtype=torch.float64)

    @property
    def zeros(self) -> int:
        """Values that are 0."""
        return self._native.zeros()

    @property
    def total(self) -> int:
        """All values."""
        return self._native.total()

    @property
    def extent(self) -> Range | None:
        """The least and the largest value, if there are any."""
        return self._native.extent()

    def range(self, qtype: QType | str = qint8, symmetric: bool = False) -> Range:
        """All values and 0."""
        largest_code(qtype)
        return widened(self.extent, symmetric)

    def percentile(self, p: float, symmetric: bool = False) -> Range:
        """The range of p percent of the values: half of the others lie below it, half above; if symmetric p is that of |x|.

        Exact to a bin, inside of which values are taken to lie evenly. Raises ValueError for a p that is no percentage.
        """
        widened(self.extent, symmetric)
        return self._native.percentile(p, symmetric)

    def mse(self, qtype: QType | str = qint8, symmetric: bool = False) -> Range:
        """The range of the least mean squared error, searched among parts of the whole one, which is never better."""
        widened(self.extent, symmetric)
        return self._native.least_squares(largest_code(qtype), symmetric)

    def entropy(self, qtype: QType | str = qint8, symmetric: bool = False) -> Range:
        """The range of the least `kl_divergence`, searched among parts of the whole one, which is never better."""
        widened(self.extent, symmetric)
        return self._native.entropy(largest_code(qtype), symmetric)

    def mean_squared_error(self, range: Range, qtype: QType | str = qint8, symmetric: bool = False) -> float:
        """Of quantizing by this range the values seen, which are taken to lie evenly in their bins."""
        return self._native.mean_squared_error(*range, largest_code(qtype), symmetric)

    def kl_divergence(self, range: Range, qtype: QType | str = qint8, symmetric: bool = False) -> float:
        """KL(P‖Q) in nats of the bins' shares inside this range, and what its codes leave of them (Migacz 2017).

        To P's bins at the ends is counted what lies beyond; Q spreads a code's values over its bins that have any.
        """
        return self._native.kl_divergence(*range, largest_code(qtype), symmetric)

    def merge(self, other: "Histogram") -> None:
        """Count what the other one has. Raises ValueError for another number of bins."""
        if other.bins != self.bins:
            raise ValueError(f"other: expected {self.bins} bins, got {other.bins}")
        self._native.merge(other._native)

    def state_dict(self) -> State:
        """`counts`, `zeros`, `lo`, `hi`."""
        lo, hi = self.extent or (0.0, 0.0)
        zeros = torch.tensor(self.zeros)
        return {"counts": self.counts, "zeros": zeros, "lo": scalar(lo), "hi": scalar(hi)}

    def load_state_dict(self, state: State) -> None:
        """Raises ValueError for other names, another number of bins, and counts that no histogram has."""
        _, zeros, lo, hi = numbers(
            {**state, "counts": scalar(0)} if "counts" in state else state,
            ("counts", "zeros", "lo", "hi"),
            type(self).__name__,
        )
        counts = state["counts"]
        if counts.dtype != torch.int64 or tuple(counts.shape) != (2 * self.bins,):
            expected = f"int64 {(2 * self.bins,)}"
            raise ValueError(f"counts: expected {expected}, got {counts.dtype} {tuple(counts.shape)}")
        self._native = native.restored(counts.cpu().contiguous().numpy(), int(zeros), lo, hi)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_native": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.load_state_dict(state["_native"])


class Percentile(Histogram):
    """The range of p percent of the values: (100 - p) / 2 percent are cut on each side, or if symmetric those with the
    largest |x|. Raises ValueError for a p that is not above 0 and at most 100.
    """

    def __init__(self, p: float = 99.999, bins: int = BINS) -> None:
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 < p <= 100:
            raise ValueError(f"p: expected a percentage above 0 and at most 100, got {p!r}")
        super().__init__(bins)
        self.p = p

    def range(self, qtype: QType | str = qint8, symmetric: bool = False) -> Range:
        """`Histogram.percentile`, with 0 in it."""
        largest_code(qtype)
        return self.percentile(self.p, symmetric)


class MSE(Histogram):
    """The range of the least mean squared error (Nagel et al. 2021, <https://arxiv.org/abs/2106.08295>, section 3.1)."""

    def range(self, qtype: QType | str = qint8, symmetric: bool = False) -> Range:
        """`Histogram.mse`."""
        return self.mse(qtype, symmetric)


class Entropy(Histogram):
    """The range that keeps most information, as Migacz 2017, "8-bit Inference with TensorRT", measures it."""

    def range(self, qtype: QType | str = qint8, symmetric: bool = False) -> Range:
        """`Histogram.entropy`."""
        return self.entropy(qtype, symmetric)
