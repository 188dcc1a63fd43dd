"""A canonical weight matrix: quantized, read back, its codes packed and unpacked.

A matrix is 2-D, C-contiguous and in CPU memory. Results are of the framework that the input is of.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from .. import _rquant
from .._threads import get_num_threads
from .arrays import Array, NotFinite, address_of, dtype_code, empty, float_matrix, typed

Range = Literal["minmax", "absmax", "mse"] | tuple[float, float]


class QMatrix(NamedTuple):
    """A canonical weight `[rows, cols]` of a `kind`: 2, 4 or 8 for integers of so many bits, 43 and 52 for float8.

    `codes` uint8 `[rows, row bytes]`, offset 2**(bits - 1), least significant bits first, rows padded to 4 bytes; float8
    bytes as they are.
    `scale` float32 or float16 `[rows, groups]`. `zero_point` of the same shape: None (symmetric), uint8 (offset like
    the codes) or float16 (plain Z). `group_size` is -1 for one group a row. A cast, kinds 510 and 87, has neither scales
    nor bytes: its `codes` are float16 or bfloat16 `[rows, cols]`.
    """

    codes: Array
    scale: Array
    zero_point: Array | None
    cols: int
    kind: int
    group_size: int

    def map(self, change: Callable[[Array], Array]) -> "QMatrix":
        """`change` done to codes, scale and zero point."""
        codes, scale, zero, *sizes = self
        scale, zero = (None if array is None else change(array) for array in (scale, zero))
        return QMatrix(change(codes), scale, zero, *sizes)

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return min(self.kind, 8)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return sum(array.nbytes for array in self[:3] if array is not None)


def _group(cols: int, group_size: int) -> int:
    return max(cols, 1) if group_size == -1 else group_size


def stored(q: QMatrix) -> tuple[int, int, int, int, int, int, int, int, int]:
    """The arguments that say what a canonical matrix is, from `codes` to `zp_kind`, each checked."""
    rows, group = q.codes.shape[0], _group(q.cols, q.group_size)
    count = rows * -(-q.cols // group)
    codes = typed(q.codes, "codes", "uint8", rows * _rquant.row_bytes(q.cols, q.kind))
    scale_dtype = dtype_code(q.scale, "scale")
    scale = typed(q.scale, "scale", "float32" if scale_dtype == _rquant.FLOAT32 else "float16", count)
    zero, zp_kind = 0, _rquant.ZP_NONE
    if q.zero_point is not None:
        integer = str(q.zero_point.dtype).endswith("uint8")
        zp_kind = _rquant.ZP_UINT8 if integer else _rquant.ZP_FLOAT16
        zero = typed(q.zero_point, "zero_point", "uint8" if integer else "float16", count)
    return codes, rows, q.cols, q.kind, group, scale, scale_dtype, zero, zp_kind


def ranges(x: Array, group_size: int) -> tuple[Array, Array]:
    """Float32 minimum and maximum `[rows, groups]` of each group of `x`, widened to contain 0. Raises NotFinite."""
    address, dtype, rows, cols = float_matrix(x, "x")
    group = _group(cols, group_size)
    lo = empty(x, (rows, -(-cols // group)), "float32")
    hi = empty(x, (rows, -(-cols // group)), "float32")
    at = (address_of(lo, "lo"), address_of(hi, "hi"))
    bad = _rquant.ranges(address, dtype, rows, cols, group, *at, get_num_threads())
    if bad >= 0:
        raise NotFinite(bad)
    return lo, hi


def qparams(lo: Array, hi: Array, kind: int, symmetric: bool, half: bool) -> tuple[Array, Array | None]:
    """Scales and zero points (None if symmetric) of ranges; float16 scales if `half` and all of them are normal there."""
    count = int(np.prod(lo.shape))
    scale = empty(lo, tuple(lo.shape), "float32")
    zero = None if symmetric else empty(lo, tuple(lo.shape), "uint8")
    ends = typed(lo, "lo", "float32"), typed(hi, "hi", "float32", count)
    zero_at = 0 if zero is None else address_of(zero, "zero_point")
    if _rquant.qparams(*ends, count, kind, symmetric, half, address_of(scale, "scale"), zero_at):
        narrow = empty(scale, tuple(lo.shape), "float16")
        narrow[...] = scale
        scale = narrow
    return scale, zero


def half_quadratic(
    x: Array, scale: Array, kind: int, group_size: int, lp_norm: float, beta: float, kappa: float, turns: int
) -> Array:
    """Float16 zero points `[rows, groups]` of `x` by half-quadratic quantization, under given scales."""
    address, dtype, rows, cols = float_matrix(x, "x")
    group = _group(cols, group_size)
    scale_dtype = dtype_code(scale, "scale")
    scale_at = typed(
        scale, "scale", "float32" if scale_dtype == _rquant.FLOAT32 else "float16", rows * -(-cols // group)
    )
    zero = empty(scale, tuple(scale.shape), "float16")
    _rquant.half_quadratic(
        address, dtype, rows, cols, kind, group, scale_at, scale_dtype, lp_norm, beta, kappa, turns,
        address_of(zero, "zero_point"), get_num_threads(),
    )  # fmt: skip
    return zero


def encode(x: Array, scale: Array, zero_point: Array | None, kind: int, group_size: int) -> QMatrix:
    """Codes of `x` under given scales and zero points. Raises NotFinite."""
    address, dtype, rows, cols = float_matrix(x, "x")
    codes = empty(x, (rows, _rquant.row_bytes(cols, kind)), "uint8")
    q = QMatrix(codes, scale, zero_point, cols, kind, group_size)
    at, _, _, _, group, *given = stored(q)
    _rquant.encode(address, dtype, rows, cols, kind, group, *given, at, get_num_threads())  # type: ignore[call-arg]
    return q


def search(x: Array, kind: int, symmetric: bool, group_size: int, half: bool, lo: Array, hi: Array) -> bool:
    """Shrink ranges of `x` to those of the least squared error; whether they are of float16 scales, if `half`."""
    floats, at, threads = (
        float_matrix(x, "x"),
        (address_of(lo, "lo"), address_of(hi, "hi")),
        get_num_threads(),
    )
    return _rquant.search(*floats, kind, symmetric, _group(floats[3], group_size), half, *at, threads)


def parameters(
    x: Array, kind: int, group_size: int, symmetric: bool, range: Range = "minmax"
) -> tuple[Array, Array | None]:
    """Scales and integer zero points of `x`, from ranges.

    `range`: "minmax"; "absmax" ([-a, a] of each group); "mse", the least squared error; or one (lo, hi) for all.
    """
    lo, hi = ranges(x, group_size)
    half = group_size != -1
    if range == "absmax":
        hi[...] = _maximum(-lo, hi)
        lo[...] = -hi
    elif range == "mse":
        half = search(x, kind, symmetric, group_size, half, lo, hi)
    elif isinstance(range, tuple):
        if len(range) != 2 or not -np.inf < range[0] <= range[1] < np.inf:
            raise ValueError(f"range: expected finite (lo, hi) with lo <= hi, got {range}")
        lo[...], hi[...] = min(range[0], 0.0), max(range[1], 0.0)
    elif range != "minmax":
        raise ValueError(f"range: expected 'minmax', 'absmax', 'mse' or (lo, hi), got {range!r}")
    return qparams(lo, hi, kind, symmetric, half)


def quantize(x: Array, kind: int, group_size: int, symmetric: bool, range: Range = "minmax") -> QMatrix:
    """`parameters` of `x`, and codes under them."""
    scale, zero = parameters(x, kind, group_size, symmetric, range)
    return encode(x, scale, zero, kind, group_size)


def _maximum(a: Array, b: Array) -> Array:
    return np.maximum(a, b) if isinstance(a, np.ndarray) else a.maximum(b)


def dequantize(q: QMatrix, out: Array) -> Array:
    """`S * (q - Z)` into `out`, `[rows, cols]` of float32, float16 or bfloat16; returns it."""
    address, dtype, rows, cols = float_matrix(out, "out")
    if (rows, cols) != (q.codes.shape[0], q.cols):
        raise ValueError(f"out: expected shape {(q.codes.shape[0], q.cols)}, got {(rows, cols)}")
    _rquant.dequantize(*stored(q), address, dtype, get_num_threads())
    return out


def pack_codes(codes: Array, kind: int) -> Array:
    """int8 codes `[rows, cols]` to canonical bytes. Raises for a code out of the type's range."""
    rows, cols = codes.shape
    out = empty(codes, (rows, _rquant.row_bytes(cols, kind)), "uint8")
    _rquant.pack_codes(typed(codes, "codes", "int8"), rows, cols, kind, address_of(out, "out"))
    return out


def unpack_codes(q: QMatrix) -> Array:
    """The signed codes, int8 `[rows, cols]`."""
    rows = q.codes.shape[0]
    out = empty(q.codes, (rows, q.cols), "int8")
    codes = typed(q.codes, "codes", "uint8", rows * _rquant.row_bytes(q.cols, q.kind))
    _rquant.unpack_codes(codes, rows, q.cols, q.kind, address_of(out, "out"))
    return out
