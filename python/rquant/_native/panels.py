"""Packed weights: a matrix as this machine's kernels read it, and the products with it."""

import math

import numpy as np

from .. import _rquant
from .._threads import get_num_threads, is_worker
from .arrays import Array, address_of, dtype_code, empty, float_matrix, typed
from .matrix import QMatrix, stored


def pack(q: QMatrix, panels: Array | None = None, groups: int = 1) -> Array:
    """This machine's panels, uint8 `[length]`, for a convolution cut where its groups end; in `panels` if that fits."""
    codes, n, k, kind, group, scale, scale_dtype, zero, zp_kind = stored(q)
    length = _rquant.packed_len(n, k, kind, group, scale_dtype, zp_kind)
    if panels is None or panels.shape != (length,):
        panels = empty(q.codes, (length,), "uint8")
    where = typed(panels, "panels", "uint8"), length, get_num_threads()
    _rquant.pack(codes, n, k, kind, group, scale, scale_dtype, zero, zp_kind, groups, *where)
    return panels


def unpack(panels: Array) -> QMatrix:
    """The exact inverse of `pack`, for panels of any machine."""
    at, length = typed(panels, "panels", "uint8"), panels.shape[0]
    n, k, kind, group, scale_dtype, zp_kind, _ = _rquant.packed_info(at, length)
    shape = (n, -(-k // group))
    codes = empty(panels, (n, _rquant.row_bytes(k, kind)), "uint8")
    scale = empty(panels, shape, "float32" if scale_dtype == _rquant.FLOAT32 else "float16")
    zero, zero_at = None, 0
    if zp_kind != _rquant.ZP_NONE:
        zero = empty(panels, shape, "uint8" if zp_kind == _rquant.ZP_UINT8 else "float16")
        zero_at = address_of(zero, "zero_point")
    _rquant.unpack(
        at, length, address_of(codes, "codes"), address_of(scale, "scale"), zero_at, get_num_threads()
    )
    return QMatrix(codes, scale, zero, k, kind, group)


def has_wide_scales(panels: Array) -> bool:
    """Whether `unpack` gives float32 scales."""
    info = _rquant.packed_info(typed(panels, "panels", "uint8"), panels.shape[0])
    return info[4] == _rquant.FLOAT32


def is_native(panels: Array, groups: int = 1) -> bool:
    """Whether this machine's kernel reads these panels, of so many groups, as they are."""
    return _rquant.packed_is_native(typed(panels, "panels", "uint8"), panels.shape[0], groups)


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
    bias_at, bias_dtype = bias_of(bias, n)
    scale_at = scales = 0
    if scale is not None:
        scales = math.prod(scale.shape)
        scale_at = typed(scale, "scale", "float32", 1 if scales == 1 else m)
    # this runs once a layer and call: `nbytes` is the cheapest length of bytes
    _rquant.linear(
        address_of(x, "x"), dtype_code(x, "x"), m, k, address_of(panels, "panels"), panels.nbytes,
        bias_at, bias_dtype, address_of(out, "out"), n, integer, scale_at, scales, get_num_threads(),
    )  # fmt: skip


def bias_of(bias: Array | None, n: int) -> tuple[int, int]:
    """Address and code of the dtype; zeros for None."""
    if bias is None:
        return 0, 0
    if bias.shape[0] != n:
        raise ValueError(f"bias: expected {n} elements, got {bias.shape[0]}")
    return address_of(bias, "bias"), dtype_code(bias, "bias")


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
        columns_at, count = typed(columns, "columns", "int64"), columns.shape[0]
        threshold = None
        if column_weight is not None and count:
            if tuple(column_weight.shape) != (n, count):
                got = tuple(column_weight.shape)
                raise ValueError(f"column_weight: expected shape {(n, count)}, got {got}")
            weight_at, weight_dtype = (
                address_of(column_weight, "column_weight"),
                dtype_code(column_weight, "column_weight"),
            )
    _rquant.linear_outliers(
        address_of(x, "x"), dtype_code(x, "x"), m, k, address_of(panels, "panels"), panels.nbytes,
        *bias_of(bias, n), address_of(out, "out"), n,
        threshold, columns_at, count, weight_at, weight_dtype, get_num_threads(),
    )  # fmt: skip


def gemm_i32(a: Array, panels: Array, n: int) -> Array:
    """Exact int32 `[m, n]` of int8 `a` `[m, k]` and the bare codes."""
    m, k = a.shape
    out = empty(a, (m, n), "int32")
    at = typed(panels, "panels", "uint8")
    _rquant.gemm_i32(
        typed(a, "a", "int8"), m, k, at, panels.shape[0], address_of(out, "out"), n, get_num_threads()
    )
    return out


def gather_rows(panels: Array, ids: Array, out: Array) -> None:
    """Row `ids[i]` (int64) of the dequantized weight into `out[i]`."""
    at = typed(panels, "panels", "uint8")
    count = int(np.prod(ids.shape))
    _rquant.gather_rows(
        at, panels.shape[0], typed(ids, "ids", "int64"), count, address_of(out, "out"), dtype_code(out, "out"),
        get_num_threads(),
    )  # fmt: skip


def quantize_rows(x: Array) -> tuple[Array, Array]:
    """Dynamic activation quantization: int8 `[m, k]` and one float32 scale a row, `[m]`."""
    address, dtype, m, k = float_matrix(x, "x")
    q, scale = empty(x, (m, k), "int8"), empty(x, (m,), "float32")
    _rquant.quantize_rows(
        address, dtype, m, k, address_of(q, "q"), address_of(scale, "scale"), get_num_threads()
    )
    return q, scale
