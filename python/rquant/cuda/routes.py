"""The ways to compute x @ W.T on a GPU; `table` says which is the fastest for how many rows.

Tensors are contiguous, x and codes at multiples of 16 bytes; every product is a launch or a few, and nothing waits.
"""

import torch
from torch import Tensor

from .._native import QMatrix
from .._native import cuda as native
from .driver import has_tensor_cores
from .table import MOST_SMALL

INTEGERS = (8, 4, 2)
_INTEGER_ROW = 66_000  # elements of a group that int32 holds the sum of


def whole_rows(q: QMatrix) -> bool:
    """Whether a row has one scale."""
    return not 0 < q.group_size < q.cols


def plain(q: QMatrix) -> QMatrix:
    """As kernels read it: its own tensors, unless they are views."""
    zero = None if q.zero_point is None else q.zero_point.contiguous()
    return QMatrix(native.aligned(q.codes), q.scale.contiguous(), zero, q.cols, q.kind, q.group_size)


def groups_fit(q: QMatrix) -> bool:
    """Whether kernels for products take this weight."""
    return q.kind in INTEGERS and (q.group_size % 32 == 0 or whole_rows(q))


def has_kernels(q: QMatrix, index: int) -> bool:
    """Whether there are kernels for products of any number of rows with this weight on device `index`."""
    return groups_fit(q) and has_tensor_cores(index)


def sums_fit(q: QMatrix) -> bool:
    """Whether int32 holds a group's sum."""
    return (q.cols if whole_rows(q) else q.group_size) <= _INTEGER_ROW


def linear(route: str, x: Tensor, q: QMatrix, bias: Tensor | None) -> Tensor:
    """`x @ dequantize(q).T + bias` of x `[m, k]`, in its dtype; a row with NaN or infinity gives a row of NaN.

    "small" and "tiled" are of float16 and bfloat16 and weights that `has_kernels`; "small" of few rows, else it is "tiled". Few
    rows of float32, or without tensor cores, can be "small" too if `groups_fit`.
    """
    if route == "dequantize":
        return _by_dequantizing(x, q, bias)
    out = x.new_empty((x.shape[0], q.codes.shape[0]))
    small = route == "small" and x.shape[0] <= MOST_SMALL
    count = native.count_parts(x, q, small)
    parts = x.new_empty((count, *out.shape), dtype=torch.float32) if count > 1 else None
    native.linear(x, q, bias, out, small, parts)
    return out


def gather_rows(q: QMatrix, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows `ids` (int64 or int32, any shape) of the float weight, `[..., k]`; NaN for an id that is not of a row."""
    return native.gather_rows(q, ids, q.codes.new_empty((*ids.shape, q.cols), dtype=dtype))


def dequantize(q: QMatrix, dtype: torch.dtype) -> Tensor:
    """The float weight `[n, k]`, float32, float16 or bfloat16."""
    return native.dequantize(q, q.codes.new_empty((q.codes.shape[0], q.cols), dtype=dtype))


def _by_dequantizing(x: Tensor, q: QMatrix, bias: Tensor | None) -> Tensor:
    weight = dequantize(q, x.dtype)
    out = torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
    # 0, or NaN of a row with NaN or infinity, whose products may otherwise be infinite
    return out.add_(torch.linalg.vector_norm(x, torch.inf, -1, keepdim=True) * 0)


def quantize_rows(x: Tensor, scale: Tensor | None, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """int8 codes `[m, k]` and float32 scale `[m]` of activations; under given scales, 1 or `m`, if there are any. Columns
    that `skip`, uint8 `[k]`, flags count as 0."""
    codes, out = torch.empty_like(x, dtype=torch.int8), x.new_empty(x.shape[0], dtype=torch.float32)
    native.quantize_rows(x, scale, codes, out, skip)
    return codes, out


def takes_int_mm(m: int, q: QMatrix) -> bool:
    """Whether `torch._int_mm` multiplies int8 `[m, k]` by this weight."""
    n, k = q.codes.shape[0], q.cols
    return (
        q.kind in INTEGERS and whole_rows(q) and sums_fit(q) and m > 16 and n % 8 == 0 == k % 8 and n > 0 < k
    )


def linear_int8(
    route: str, x: Tensor, scale: Tensor, q: QMatrix, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The same of int8 x `[m, k]` under float32 scales `[m]` of its rows, by exact int32 sums; of `dtype`."""
    if route == "int_mm":
        return _by_int_mm(x, scale, q, bias, dtype)
    out = x.new_empty((x.shape[0], q.codes.shape[0]), dtype=dtype)
    native.linear_int8(x, scale, q, bias, out)
    return out


def _by_int_mm(x: Tensor, scale: Tensor, q: QMatrix, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    codes = native.unpack_codes(q, q.codes.new_empty((q.codes.shape[0], q.cols), dtype=torch.int8))
    sums = torch._int_mm(x, codes.T)
    zero = q.zero_point
    if zero is not None and zero.dtype == torch.uint8:  # in integers, so that nothing cancels
        sums -= x.sum(-1, keepdim=True, dtype=torch.int32) * (zero.reshape(1, -1).int() - (1 << (q.kind - 1)))
    out = sums.float()
    if zero is not None and zero.dtype != torch.uint8:
        out -= x.sum(-1, keepdim=True, dtype=torch.int32).float() * zero.reshape(1, -1).float()
    out = out.mul_(q.scale.reshape(1, -1)).mul_(scale.reshape(-1, 1))
    return (out if bias is None else out.add_(bias)).to(dtype)
