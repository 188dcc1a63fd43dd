"""The ops on CUDA tensors: kernels where there is one, torch's matrix product on dequantized weights where that is faster,
and plain torch for the rest (float8, groups that are no multiple of 32).
"""

import warnings
from functools import lru_cache

import torch
from torch import Tensor

from .. import _native_cuda, _rquant
from .._native import QMatrix
from ..cuda import compiler
from . import reference
from .elsewhere import check_devices

MOST_ROWS = 128
"""Rows of x beyond which a weight is dequantized and multiplied by torch. From limits of memory and tensor cores, not yet
measured on a GPU."""
_INTEGER_ROW = 66_000  # elements of a group that int32 holds the sum of
_KINDS = (8, 4, 2)


@lru_cache(maxsize=1)
def ready() -> bool:
    """Whether kernels can run here; says once why not."""
    if not _rquant.cuda_driver_present():
        return False
    found, cache = compiler.find_nvrtc(), compiler.cache_folder()
    if found is None and not any(cache.glob("*.cubin")):
        warnings.warn(
            "rquant found no NVRTC to compile its CUDA kernels (set RQUANT_NVRTC to the path of libnvrtc.so): "
            "its layers compute by plain torch operations and dequantize a weight for each call",
            stacklevel=2,
        )
        return False
    path, major = found or (None, compiler.torch_major() or 0)
    _rquant.cuda_configure(path, major, cache)
    return True


@lru_cache(maxsize=64)
def _has_tensor_cores(index: int) -> bool:
    """Of the kind that kernels for products use: compute capability 8.0 or later."""
    arch, _ = _rquant.cuda_device(index)
    return int(arch.removeprefix("sm_").rstrip("af")) >= 80


def multiplies(q: QMatrix, index: int) -> bool:
    """Whether there are kernels for products with this weight on device `index`."""
    return (q.group_size % 32 == 0 or not 0 < q.group_size < q.cols) and _has_tensor_cores(index)


def dequantize_canonical(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    cols: int,
    kind: int,
    group_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """The float weight `[rows, cols]`."""
    check_devices(codes, scale, zero_point)
    if kind not in _KINDS or not _native_cuda.is_float(dtype) or not ready():
        return reference.dequantize_canonical(codes, scale, zero_point, cols, kind, group_size, dtype)
    return _dequantize(QMatrix(codes, scale, zero_point, cols, kind, group_size), dtype)


def _dequantize(q: QMatrix, dtype: torch.dtype) -> Tensor:
    return _native_cuda.dequantize(_plain(q), q.codes.new_empty((q.codes.shape[0], q.cols), dtype=dtype))


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes `[m, k]` and float32 scale `[m]` of activations."""
    if not ready() or not _native_cuda.is_float(x.dtype):
        return reference.quantize_rows(x)
    return _quantize_rows(x, None)


def _quantize_rows(x: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    codes, out = torch.empty_like(x, dtype=torch.int8), x.new_empty(x.shape[0], dtype=torch.float32)
    _native_cuda.quantize_rows(x.contiguous(), scale if scale is None else scale.contiguous(), codes, out)
    return codes, out


def linear_canonical(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    kind: int,
    group_size: int,
    integer: bool,
    scale_of_x: Tensor | None = None,
) -> Tensor:
    """x `[..., k]` -> `[..., n]` in both arithmetics; a row with NaN or infinity gives a row of NaN."""
    check_devices(x, codes, scale, zero_point, bias, scale_of_x)
    if x.shape[-1] != in_features:
        raise ValueError(f"x: expected a last dimension of {in_features}, got shape {tuple(x.shape)}")
    q = QMatrix(codes, scale, zero_point, in_features, kind, group_size)
    known = kind in _KINDS and _native_cuda.is_float(x.dtype) and in_features > 0 and ready()
    fits = known and multiplies(q, _native_cuda.place(x)[0])
    if integer:
        fits = fits and (in_features if group_size == -1 else min(group_size, in_features)) <= _INTEGER_ROW
    if not known or (integer and not fits):
        return reference.linear_canonical(
            x, codes, scale, zero_point, bias, in_features, kind, group_size, integer, scale_of_x
        )
    rows = _native_cuda.aligned(x.reshape(-1, in_features))
    out = rows.new_empty((rows.shape[0], codes.shape[0]))
    bias = bias if bias is None else bias.contiguous()
    if integer:
        values, row_scale = _quantize_rows(rows, scale_of_x)
        _native_cuda.linear_int8(values, row_scale, _plain(q), bias, out)
    elif fits and x.dtype != torch.float32 and rows.shape[0] <= MOST_ROWS:
        _native_cuda.linear(rows, _plain(q), bias, out)
    else:
        weight = _dequantize(q, x.dtype)
        out = torch.nn.functional.linear(rows, weight, None if bias is None else bias.to(x.dtype))
        out = out.masked_fill(~rows.isfinite().all(-1, keepdim=True), torch.nan)
    return out.reshape(*x.shape[:-1], codes.shape[0])


def _plain(q: QMatrix) -> QMatrix:
    """As kernels read it: itself, unless it is made of views."""
    q = q.map(lambda t: t.contiguous())
    return q._replace(codes=_native_cuda.aligned(q.codes))
