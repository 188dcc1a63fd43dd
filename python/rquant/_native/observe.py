"""The native module's observers on numpy arrays and torch tensors of any shape, contiguous and in CPU memory."""

import math

import numpy as np

from .. import _rquant
from .._threads import get_num_threads
from .arrays import Array, NotFinite, address_of, dtype_code, typed

Extent = tuple[float, float]


def _row(x: Array) -> tuple[int, int, int]:
    return address_of(x, "x"), dtype_code(x, "x"), math.prod(x.shape)


def _seen(bad: int, lo: float, hi: float) -> Extent | None:
    if bad >= 0:
        raise NotFinite(bad)
    return (lo, hi) if lo <= hi else None


def extent(x: Array) -> Extent | None:
    """Minimum and maximum; None without elements. Raises NotFinite."""
    return _seen(*_rquant.extent(*_row(x), get_num_threads()))


def update(histogram: _rquant.Histogram, x: Array) -> Extent | None:
    """Count the values of x; returns and raises what `extent` does. A bad x counts nothing."""
    return _seen(*histogram.update(*_row(x), get_num_threads()))


def counts(histogram: _rquant.Histogram, bins: int) -> np.ndarray:
    """The values in each of the bins, int64."""
    out: np.ndarray = np.empty(bins, np.int64)
    histogram.counts(address_of(out, "counts"), bins)
    return out


def restored(counts: np.ndarray, zeros: int, least: float, most: float) -> _rquant.Histogram:
    """The histogram that had these int64 counts. Raises ValueError for numbers that none has."""
    if zeros < 0 or (counts < 0).any():
        raise ValueError("counts: expected numbers of values, got negative ones")
    at = typed(counts, "counts", "int64")
    return _rquant.Histogram.from_parts(at, len(counts), zeros, least, most)
