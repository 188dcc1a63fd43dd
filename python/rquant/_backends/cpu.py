"""The ops on CPU tensors, by the native module."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from .. import _native, _rquant, optimize
from .._native import QMatrix
from . import reference

_native.share_openmp()  # torch has loaded it by now
NATIVE = _rquant.register_torch_kernels()
"""Whether some ops have kernels that need no Python: this torch may be too old for them."""


def linear(
    x: Tensor,
    panels: Tensor,
    bias: Tensor | None,
    in_features: int,
    out_features: int,
    integer: bool,
    scale: Tensor | None = None,
) -> Tensor:
    """x `[..., in_features]` -> `[..., out_features]`, of x's dtype.

    `scale`: ready-made activation scales, float32, one a row or a single one for all.
    """
    *rows, k = x.shape
    if k != in_features:
        raise ValueError(f"x: expected a last dimension of {in_features}, got shape {tuple(x.shape)}")
    out = x.new_empty((*rows, out_features))
    scale = None if scale is None else scale.contiguous()
    m = math.prod(rows)
    _native.linear(x.contiguous(), panels, bias, out, m, in_features, out_features, integer, scale)
    return out


def linear_canonical(
    x: Tensor, q: QMatrix, bias: Tensor | None, integer: bool, scale_of_x: Tensor | None = None
) -> Tensor:
    """`linear` on a canonical weight: packs it for this one call."""
    return linear(x, _native.pack(q), bias, q.cols, q.codes.shape[0], integer, scale_of_x)


def linear_outliers(
    x: Tensor,
    panels: Tensor,
    bias: Tensor | None,
    in_features: int,
    out_features: int,
    threshold: float | None,
    columns: list[int] | None,
    column_weight: Tensor | None,
) -> Tensor:
    """`linear` in integers, but for the columns that reach `threshold`, or `columns`, in float."""
    *rows, k = x.shape
    if k != in_features:
        raise ValueError(f"x: expected a last dimension of {in_features}, got shape {tuple(x.shape)}")
    out = x.new_empty((*rows, out_features))
    at = None if columns is None else _indices(tuple(columns))
    kept = None if column_weight is None else column_weight.contiguous()
    sizes = (math.prod(rows), in_features, out_features)
    _native.linear_outliers(x.contiguous(), panels, bias, out, sizes, threshold, at, kept)
    return out


@lru_cache(maxsize=4096)
def _indices(columns: tuple[int, ...]) -> Tensor:
    return torch.tensor(columns, dtype=torch.int64)


def linear_outliers_canonical(
    x: Tensor,
    q: QMatrix,
    bias: Tensor | None,
    threshold: float | None,
    columns: list[int] | None,
    column_weight: Tensor | None,
) -> Tensor:
    """`linear_outliers` on a canonical weight: packs it for this one call."""
    n = q.codes.shape[0]
    return linear_outliers(x, _native.pack(q), bias, q.cols, n, threshold, columns, column_weight)


def linear_outliers_unfrozen(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kind: int,
    group_size: int,
    symmetric: bool,
    optimizer: str,
    threshold: float | None,
    columns: list[int] | None,
) -> Tensor:
    """Quantize the float weight and multiply; given columns take theirs from it as they are."""
    panels = _native.pack(_quantized(weight, kind, group_size, symmetric, optimizer))
    kept = None if columns is None else weight[:, columns]
    return linear_outliers(x, panels, bias, weight.shape[1], weight.shape[0], threshold, columns, kept)


def linear_unfrozen(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kind: int,
    group_size: int,
    symmetric: bool,
    optimizer: str,
    integer: bool,
) -> Tensor:
    """Quantize the float weight `[n, k]`, pack it and multiply: bit for bit what the frozen layer computes."""
    q = _quantized(weight, kind, group_size, symmetric, optimizer)
    return linear(x, _native.pack(q), bias, weight.shape[1], weight.shape[0], integer)


def _quantized(weight: Tensor, kind: int, group_size: int, symmetric: bool, optimizer: str) -> QMatrix:
    try:
        return optimize.by_arguments(weight.contiguous(), kind, group_size, symmetric, optimizer)
    except _native.NotFinite as bad:
        raise bad.named("weight", weight.shape) from None


def embedding(ids: Tensor, panels: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Rows `ids` (int64, any shape) of the packed weight, `[..., dim]`."""
    out = torch.empty((*ids.shape, dim), dtype=dtype)
    _native.gather_rows(panels, ids.contiguous(), out)
    return out


def gemm_i32(a: Tensor, panels: Tensor, out_features: int) -> Tensor:
    """Exact int32 product of int8 `a` `[m, k]` and the bare codes, `[m, out_features]`."""
    return _native.gemm_i32(a.contiguous(), panels, out_features)  # type: ignore[no-any-return]


def dequantize(panels: Tensor, n: int, k: int, dtype: torch.dtype) -> Tensor:
    """The float weight `[n, k]` of packed panels."""
    return _native.dequantize(_native.unpack(panels), torch.empty((n, k), dtype=dtype))  # type: ignore[no-any-return]


def dequantize_canonical(q: QMatrix, dtype: torch.dtype) -> Tensor:
    """The float weight `[rows, cols]` of a canonical one."""
    return _native.dequantize(q, torch.empty((q.codes.shape[0], q.cols), dtype=dtype))  # type: ignore[no-any-return]


def fake_quantize(weight: Tensor, kind: int, group_size: int, symmetric: bool, optimizer: str) -> Tensor:
    """Quantize and dequantize: what the frozen layer's weight will read as, of weight's dtype."""
    q = _quantized(weight, kind, group_size, symmetric, optimizer)
    return _native.dequantize(q, torch.empty(weight.shape, dtype=weight.dtype))  # type: ignore[no-any-return]


def inside_range(weight: Tensor, kind: int, group_size: int, symmetric: bool, optimizer: str) -> Tensor:
    """bool, of weight's shape: whether rounding alone, without clipping, gave the element's code."""
    q = _quantized(weight, kind, group_size, symmetric, optimizer)
    return reference.inside(weight, q.scale, q.zero_point, kind, group_size)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes `[m, k]` and float32 scale `[m]` of activations."""
    return _native.quantize_rows(x.contiguous())
