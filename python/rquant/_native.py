"""The native module on numpy arrays and torch tensors: the only place that takes addresses.

A matrix is 2-D, C-contiguous and in CPU memory. Results are of the framework that the input is of.
"""

import math
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from . import _rquant
from ._threads import get_num_threads, is_worker

Range = Literal["minmax", "absmax", "mse"] | tuple[float, float]
Array = Any  # numpy.ndarray or torch.Tensor; torch may not be installed


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


class NotFinite(ValueError):
    """NaN or infinity at flat index `index` of an input; who knows its name and shape says so."""

    def __init__(self, index: int) -> None:
        super().__init__(f"x: NaN or infinity at flat index {index}")
        self.index = index

    def named(self, name: str, shape: tuple[int, ...]) -> ValueError:
        """The error for the user: `weight: expected finite numbers, got NaN or infinity at [3, 5]`."""
        at = [int(i) for i in np.unravel_index(self.index, shape)]
        return ValueError(f"{name}: expected finite numbers, got NaN or infinity at {at}")


BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""numpy has no bfloat16; an array of this dtype is taken for one."""
_FLOATS = {"float32": _rquant.FLOAT32, "float16": _rquant.FLOAT16, "bfloat16": _rquant.BFLOAT16}
_FLOATS[str(BFLOAT16)] = _rquant.BFLOAT16
_known: dict[Any, int] = {}


def _code(array: Array, argument: str) -> int:
    """The native code of a float dtype, numpy's or torch's: one look-up after the first time."""
    code = _known.get(array.dtype)
    if code is None:
        code = _FLOATS.get(str(array.dtype).removeprefix("torch."))
        if code is None:
            raise ValueError(f"{argument}: expected dtype float32, float16 or bfloat16, got {array.dtype}")
        _known[array.dtype] = code
    return code


def _address(array: Array, argument: str) -> int:
    if isinstance(array, np.ndarray):
        if not array.flags.c_contiguous:
            raise ValueError(f"{argument}: expected a C-contiguous array, got strides {array.strides}")
        return int(array.__array_interface__["data"][0])
    if not array.is_contiguous() or not array.is_cpu:
        raise ValueError(
            f"{argument}: expected a contiguous CPU tensor, got {array.device} with strides {array.stride()}"
        )
    return array.data_ptr()  # type: ignore[no-any-return]


_name = lru_cache(maxsize=64)(lambda dtype: str(dtype).removeprefix("torch."))


def _typed(array: Array, argument: str, dtype: str, size: int | None = None) -> int:
    """Address of `array`, once its dtype and number of elements are what the native side will read."""
    if _name(array.dtype) != dtype:
        raise ValueError(f"{argument}: expected dtype {dtype}, got {array.dtype}")
    if size is not None and (count := math.prod(array.shape)) != size:
        raise ValueError(f"{argument}: expected {size} elements, got {count} (shape {tuple(array.shape)})")
    return _address(array, argument)


def _empty(like: Array, shape: tuple[int, ...], dtype: str) -> Array:
    if isinstance(like, np.ndarray):
        return np.empty(shape, dtype)
    torch = sys.modules["torch"]
    return torch.empty(shape, dtype=getattr(torch, dtype))


def _group(cols: int, group_size: int) -> int:
    return max(cols, 1) if group_size == -1 else group_size


def _floats(x: Array, argument: str) -> tuple[int, int, int, int]:
    if len(x.shape) != 2:
        raise ValueError(f"{argument}: expected 2 dimensions, got shape {tuple(x.shape)}")
    return _address(x, argument), _code(x, argument), x.shape[0], x.shape[1]


def _stored(q: QMatrix) -> tuple[int, int, int, int, int, int, int, int, int]:
    """The arguments that say what a canonical matrix is, from `codes` to `zp_kind`, each checked."""
    rows, group = q.codes.shape[0], _group(q.cols, q.group_size)
    count = rows * -(-q.cols // group)
    codes = _typed(q.codes, "codes", "uint8", rows * _rquant.row_bytes(q.cols, q.kind))
    scale_dtype = _code(q.scale, "scale")
    scale = _typed(q.scale, "scale", "float32" if scale_dtype == _rquant.FLOAT32 else "float16", count)
    zero, zp_kind = 0, _rquant.ZP_NONE
    if q.zero_point is not None:
        integer = str(q.zero_point.dtype).endswith("uint8")
        zp_kind = _rquant.ZP_UINT8 if integer else _rquant.ZP_FLOAT16
        zero = _typed(q.zero_point, "zero_point", "uint8" if integer else "float16", count)
    return codes, rows, q.cols, q.kind, group, scale, scale_dtype, zero, zp_kind


def ranges(x: Array, group_size: int) -> tuple[Array, Array]:
    """Float32 minimum and maximum `[rows, groups]` of each group of `x`, widened to contain 0. Raises NotFinite."""
    address, dtype, rows, cols = _floats(x, "x")
    group = _group(cols, group_size)
    lo = _empty(x, (rows, -(-cols // group)), "float32")
    hi = _empty(x, (rows, -(-cols // group)), "float32")
    at = (_address(lo, "lo"), _address(hi, "hi"))
    bad = _rquant.ranges(address, dtype, rows, cols, group, *at, get_num_threads())
    if bad >= 0:
        raise NotFinite(bad)
    return lo, hi


def qparams(lo: Array, hi: Array, kind: int, symmetric: bool, half: bool) -> tuple[Array, Array | None]:
    """Scales and zero points (None if symmetric) of ranges; float16 scales if `half` and all of them are normal there."""
    count = int(np.prod(lo.shape))
    scale = _empty(lo, tuple(lo.shape), "float32")
    zero = None if symmetric else _empty(lo, tuple(lo.shape), "uint8")
    ends = _typed(lo, "lo", "float32"), _typed(hi, "hi", "float32", count)
    zero_at = 0 if zero is None else _address(zero, "zero_point")
    if _rquant.qparams(*ends, count, kind, symmetric, half, _address(scale, "scale"), zero_at):
        narrow = _empty(scale, tuple(lo.shape), "float16")
        narrow[...] = scale
        scale = narrow
    return scale, zero


def half_quadratic(
    x: Array, scale: Array, kind: int, group_size: int, lp_norm: float, beta: float, kappa: float, turns: int
) -> Array:
    """Float16 zero points `[rows, groups]` of `x` by half-quadratic quantization, under given scales."""
    address, dtype, rows, cols = _floats(x, "x")
    group = _group(cols, group_size)
    scale_dtype = _code(scale, "scale")
    scale_at = _typed(
        scale, "scale", "float32" if scale_dtype == _rquant.FLOAT32 else "float16", rows * -(-cols // group)
    )
    zero = _empty(scale, tuple(scale.shape), "float16")
    _rquant.half_quadratic(
        address, dtype, rows, cols, kind, group, scale_at, scale_dtype, lp_norm, beta, kappa, turns,
        _address(zero, "zero_point"), get_num_threads(),
    )  # fmt: skip
    return zero


def encode(x: Array, scale: Array, zero_point: Array | None, kind: int, group_size: int) -> QMatrix:
    """Codes of `x` under given scales and zero points. Raises NotFinite."""
    address, dtype, rows, cols = _floats(x, "x")
    codes = _empty(x, (rows, _rquant.row_bytes(cols, kind)), "uint8")
    q = QMatrix(codes, scale, zero_point, cols, kind, group_size)
    at, _, _, _, group, *given = _stored(q)
    _rquant.encode(address, dtype, rows, cols, kind, group, *given, at, get_num_threads())  # type: ignore[call-arg]
    return q


def search(x: Array, kind: int, symmetric: bool, group_size: int, half: bool, lo: Array, hi: Array) -> bool:
    """Shrink ranges of `x` to those of the least squared error; whether they are of float16 scales, if `half`."""
    floats, at, threads = _floats(x, "x"), (_address(lo, "lo"), _address(hi, "hi")), get_num_threads()
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
    address, dtype, rows, cols = _floats(out, "out")
    if (rows, cols) != (q.codes.shape[0], q.cols):
        raise ValueError(f"out: expected shape {(q.codes.shape[0], q.cols)}, got {(rows, cols)}")
    _rquant.dequantize(*_stored(q), address, dtype, get_num_threads())
    return out


def pack_codes(codes: Array, kind: int) -> Array:
    """int8 codes `[rows, cols]` to canonical bytes. Raises for a code out of the type's range."""
    rows, cols = codes.shape
    out = _empty(codes, (rows, _rquant.row_bytes(cols, kind)), "uint8")
    _rquant.pack_codes(_typed(codes, "codes", "int8"), rows, cols, kind, _address(out, "out"))
    return out


def unpack_codes(q: QMatrix) -> Array:
    """The signed codes, int8 `[rows, cols]`."""
    rows = q.codes.shape[0]
    out = _empty(q.codes, (rows, q.cols), "int8")
    codes = _typed(q.codes, "codes", "uint8", rows * _rquant.row_bytes(q.cols, q.kind))
    _rquant.unpack_codes(codes, rows, q.cols, q.kind, _address(out, "out"))
    return out


def pack(q: QMatrix, panels: Array | None = None, groups: int = 1) -> Array:
    """This machine's panels, uint8 `[length]`, for a convolution cut where its groups end; in `panels` if that fits."""
    codes, n, k, kind, group, scale, scale_dtype, zero, zp_kind = _stored(q)
    length = _rquant.packed_len(n, k, kind, group, scale_dtype, zp_kind)
    if panels is None or panels.shape != (length,):
        panels = _empty(q.codes, (length,), "uint8")
    where = _typed(panels, "panels", "uint8"), length, get_num_threads()
    _rquant.pack(codes, n, k, kind, group, scale, scale_dtype, zero, zp_kind, groups, *where)
    return panels


def unpack(panels: Array) -> QMatrix:
    """The exact inverse of `pack`, for panels of any machine."""
    at, length = _typed(panels, "panels", "uint8"), panels.shape[0]
    n, k, kind, group, scale_dtype, zp_kind, _ = _rquant.packed_info(at, length)
    shape = (n, -(-k // group))
    codes = _empty(panels, (n, _rquant.row_bytes(k, kind)), "uint8")
    scale = _empty(panels, shape, "float32" if scale_dtype == _rquant.FLOAT32 else "float16")
    zero, zero_at = None, 0
    if zp_kind != _rquant.ZP_NONE:
        zero = _empty(panels, shape, "uint8" if zp_kind == _rquant.ZP_UINT8 else "float16")
        zero_at = _address(zero, "zero_point")
    _rquant.unpack(at, length, _address(codes, "codes"), _address(scale, "scale"), zero_at, get_num_threads())
    return QMatrix(codes, scale, zero, k, kind, group)


def has_wide_scales(panels: Array) -> bool:
    """Whether `unpack` gives float32 scales."""
    info = _rquant.packed_info(_typed(panels, "panels", "uint8"), panels.shape[0])
    return info[4] == _rquant.FLOAT32


def is_native(panels: Array, groups: int = 1) -> bool:
    """Whether this machine's kernel reads these panels, of so many groups, as they are."""
    return _rquant.packed_is_native(_typed(panels, "panels", "uint8"), panels.shape[0], groups)


def share_openmp() -> None:
    """Run on the process's OpenMP threads from now on: they spin after each torch op, and ours would fight them for the
    cores. Not in a worker: a forked process has none of its parent's threads, and OpenMP would wait for them.
    """
    if not is_worker():
        _rquant.adopt_openmp()


def linear(
    x: Array,
    panels: Array,
    bias: Array | None,
    out: Array,
    m: int,
    k: int,
    n: int,
    integer: bool,
    scale: Array | None = None,
) -> None:
    """`out[m, n] = x[m, k] @ dequantize(W).T + bias`; `out` has x's dtype.

    `scale`: ready-made activation scales for the integer arithmetic, float32, one a row or a single one for all.
    """
    bias_at, bias_dtype = _bias(bias, n)
    scale_at = scales = 0
    if scale is not None:
        scales = math.prod(scale.shape)
        scale_at = _typed(scale, "scale", "float32", 1 if scales == 1 else m)
    # this runs once a layer and call: `nbytes` is the cheapest length of bytes
    _rquant.linear(
        _address(x, "x"), _code(x, "x"), m, k, _address(panels, "panels"), panels.nbytes,
        bias_at, bias_dtype, _address(out, "out"), n, integer, scale_at, scales, get_num_threads(),
    )  # fmt: skip


def _bias(bias: Array | None, n: int) -> tuple[int, int]:
    if bias is None:
        return 0, 0
    if bias.shape[0] != n:
        raise ValueError(f"bias: expected {n} elements, got {bias.shape[0]}")
    return _address(bias, "bias"), _code(bias, "bias")


def linear_outliers(
    x: Array,
    panels: Array,
    bias: Array | None,
    out: Array,
    sizes: tuple[int, int, int],
    threshold: float | None,
    columns: Array | None,
    column_weight: Array | None,
) -> None:
    """`linear` in integers, sizes `(m, k, n)`, but for some columns of x in float: int64 `columns` with, if they are kept
    in float, their weights `[n, columns]`; or those that reach `threshold`."""
    m, k, n = sizes
    columns_at, count, weight_at, weight_dtype = 0, 0, 0, 0
    if columns is not None:
        columns_at, count = _typed(columns, "columns", "int64"), columns.shape[0]
        threshold = None
        if column_weight is not None and count:
            if tuple(column_weight.shape) != (n, count):
                got = tuple(column_weight.shape)
                raise ValueError(f"column_weight: expected shape {(n, count)}, got {got}")
            weight_at, weight_dtype = (
                _address(column_weight, "column_weight"),
                _code(column_weight, "column_weight"),
            )
    _rquant.linear_outliers(
        _address(x, "x"), _code(x, "x"), m, k, _address(panels, "panels"), panels.nbytes,
        *_bias(bias, n), _address(out, "out"), n,
        threshold, columns_at, count, weight_at, weight_dtype, get_num_threads(),
    )  # fmt: skip


def gemm_i32(a: Array, panels: Array, n: int) -> Array:
    """Exact int32 `[m, n]` of int8 `a` `[m, k]` and the bare codes."""
    m, k = a.shape
    out = _empty(a, (m, n), "int32")
    at = _typed(panels, "panels", "uint8")
    _rquant.gemm_i32(
        _typed(a, "a", "int8"), m, k, at, panels.shape[0], _address(out, "out"), n, get_num_threads()
    )
    return out


def gather_rows(panels: Array, ids: Array, out: Array) -> None:
    """Row `ids[i]` (int64) of the dequantized weight into `out[i]`."""
    at = _typed(panels, "panels", "uint8")
    count = int(np.prod(ids.shape))
    _rquant.gather_rows(
        at, panels.shape[0], _typed(ids, "ids", "int64"), count, _address(out, "out"), _code(out, "out"),
        get_num_threads(),
    )  # fmt: skip


def quantize_rows(x: Array) -> tuple[Array, Array]:
    """Dynamic activation quantization: int8 `[m, k]` and one float32 scale a row, `[m]`."""
    address, dtype, m, k = _floats(x, "x")
    q, scale = _empty(x, (m, k), "int8"), _empty(x, (m,), "float32")
    _rquant.quantize_rows(address, dtype, m, k, _address(q, "q"), _address(scale, "scale"), get_num_threads())
    return q, scale
