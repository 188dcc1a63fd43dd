"""Quantized matrices on numpy arrays; torch is neither needed nor imported.

q = rquant.numpy.quantize(w, "int4")        # w float32 [n, k]
y = rquant.numpy.linear(x, q)               # x float32 [..., k] -> [..., n]
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from . import _native
from ._native import NotFinite, QMatrix, Range
from .qtypes import QType, qint8, qtype_of
from .scheme import Scheme

__all__ = ["QArray", "dequantize", "linear", "quantize"]


@dataclass(frozen=True)
class QArray:
    """A quantized `[n, k]` matrix in canonical form; `linear` packs it for this CPU on first use."""

    matrix: QMatrix
    scheme: Scheme
    _panels: list[NDArray[np.uint8]] = field(default_factory=list, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, k)`."""
        return self.matrix.codes.shape[0], self.matrix.cols

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return self.matrix.nbytes

    def int_repr(self) -> NDArray[np.integer]:
        """The signed codes, int8 `[n, k]`; of a float8 type its bytes, uint8, as numpy lacks the type."""
        if self.scheme.qtype.is_floating_point:
            return self.matrix.codes[:, : self.matrix.cols]  # type: ignore[no-any-return]
        return _native.unpack_codes(self.matrix)  # type: ignore[no-any-return]

    @property
    def scale(self) -> NDArray[np.floating]:
        """float32 or float16 `[n, groups]`."""
        return self.matrix.scale  # type: ignore[no-any-return]

    @property
    def zero_point(self) -> NDArray[np.int8]:
        """The plain Z, int8 `[n, groups]`; zeros if symmetric."""
        if self.matrix.zero_point is None:
            return np.zeros(self.scale.shape, np.int8)
        offset = 1 << (self.scheme.bits - 1)
        return (self.matrix.zero_point.astype(np.int16) - offset).astype(np.int8)


def quantize(
    x: NDArray[np.floating],
    qtype: QType | str = qint8,
    *,
    symmetric: bool | None = None,
    group_size: int | None = None,
    range: Range = "minmax",
) -> QArray:
    """Quantize `x`, float32 or float16 `[n, k]`, as `rquant.quantize_tensor` does along axis 0. `range`: "minmax", "absmax", "mse" or one
    (lo, hi).

    Raises ValueError for another dtype or rank, and for NaN or infinity (with its index).
    """
    x = np.ascontiguousarray(x)
    scheme = Scheme.resolve(qtype, group_size, symmetric)
    try:
        q = _native.quantize(x, scheme.kind, scheme.group_size, scheme.symmetric, range)
    except NotFinite as bad:
        raise bad.named("x", x.shape) from None
    return QArray(q, scheme)


def dequantize(q: QArray, dtype: type[np.floating] | str = np.float32) -> NDArray[np.floating]:
    """`S * (q - Z)` as float32 or float16 `[n, k]`."""
    return _native.dequantize(q.matrix, np.empty(q.shape, dtype))  # type: ignore[no-any-return]


def linear(
    x: NDArray[np.floating],
    q: QArray,
    bias: NDArray[np.floating] | None = None,
    activations: QType | str | None = None,
) -> NDArray[np.floating]:
    """`x @ dequantize(q).T + bias` for `x` float32 or float16 `[..., k]`; the result `[..., n]` has x's dtype.

    With `activations=qint8` each row of x becomes int8 and the product is exact int32. Raises ValueError for sizes
    that do not fit.
    """
    if activations is not None:
        qtype_of(activations, "activations", (qint8,))
    if not q._panels:
        q._panels.append(_native.pack(q.matrix))
    x = np.ascontiguousarray(x)
    n, k = q.shape
    if x.ndim == 0 or x.shape[-1] != k:
        raise ValueError(f"x: expected a last dimension of {k}, got shape {x.shape}")
    out = np.empty((*x.shape[:-1], n), x.dtype)
    bias = None if bias is None else np.ascontiguousarray(bias)
    _native.linear(x, q._panels[0], bias, out, math.prod(x.shape[:-1]), k, n, activations is not None)
    return out
