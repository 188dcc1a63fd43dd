"""LLM.int8() on CUDA tensors: the integer product of x without its large columns, and those in float.

Which columns reach the threshold is known on the device only, where kernels list them and multiply by those that are listed.
A weight that they do not take goes through plain torch. Outside of a graph it asks for the columns, one wait a call, and
dequantizes their weights only; while a stream records nothing may wait, and its float product takes all columns, zeros where
there are no outliers.
"""

from functools import lru_cache

import torch
from torch import Tensor

from .._native import QMatrix
from ..cuda import outlier_route as routes
from . import cuda, reference
from .elsewhere import check_devices


def linear_outliers_canonical(
    x: Tensor,
    q: QMatrix,
    bias: Tensor | None,
    threshold: float | None,
    columns: list[int] | None,
    column_weight: Tensor | None,
) -> Tensor:
    """x `[..., k]` -> `[..., n]`; `columns`, or what reaches `threshold`, in float: by `column_weight` `[n, columns]`, or
    dequantized weights."""
    check_devices(x, *q[:3], bias, column_weight)
    if x.shape[-1] != q.cols:
        raise ValueError(f"x: expected a last dimension of {q.cols}, got shape {tuple(x.shape)}")
    rows = x.reshape(-1, q.cols)
    if routes.lists_outliers(q, x):
        chosen = None if columns is None else tuple(columns)
        out = routes.linear_outliers(rows, q, bias, threshold or torch.inf, chosen, column_weight)
        return out.reshape(*x.shape[:-1], q.codes.shape[0])
    if columns is None and q.cols:
        mask = reference.outlier_mask(rows, threshold or torch.inf)
        if capturing(x):
            return _finish(x, rows, q, bias, mask, torch.where(mask, rows, 0), None)
        at = mask.nonzero().flatten()
    else:
        at = _indices(tuple(columns or ()), x.device)
        mask = torch.zeros(q.cols, dtype=torch.bool, device=x.device).index_fill_(0, at, True)
    kept = weight_of_columns(q, at) if column_weight is None else column_weight.float()
    return _finish(x, rows, q, bias, mask, rows[:, at], kept)


def _finish(
    x: Tensor,
    rows: Tensor,
    q: QMatrix,
    bias: Tensor | None,
    mask: Tensor,
    taken: Tensor,
    weight: Tensor | None,
) -> Tensor:
    """The sum of both products; `weight` `[n, columns]` of the columns `taken`, or None of all."""
    rest = torch.where(mask & rows.isfinite(), 0, rows)  # NaN and infinity of any column make a row NaN
    # of float32: rounded once, in the end
    out = cuda.linear_canonical(rest.float(), q, None, True)
    if weight is None or weight.shape[1]:
        weight = cuda.dequantize_canonical(q, torch.float32) if weight is None else weight
        out = out + taken.float() @ weight.T
    if bias is not None:
        out = out + bias.float()
    return out.to(x.dtype).reshape(*x.shape[:-1], q.codes.shape[0])


def weight_of_columns(q: QMatrix, at: Tensor) -> Tensor:
    """Columns `at` (int64) of the weight as float32 `[n, columns]`; of integer codes."""
    each = 8 // q.kind
    field = q.codes[:, at // each] >> ((at % each) * q.kind).to(torch.uint8) & ((1 << q.kind) - 1)
    group = torch.zeros_like(at) if q.group_size == -1 else at // q.group_size
    zero = reference.zeros_of(q.scale, q.zero_point, q.kind)[:, group]
    return q.scale[:, group].float() * (field.float() - (1 << (q.kind - 1)) - zero)


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
    """Quantize the weight `[n, k]` anew and multiply; given columns take theirs from it as they are."""
    check_devices(x, weight, bias)
    q = reference.chosen(weight, kind, group_size, symmetric, optimizer)
    kept = None if columns is None else weight[:, _indices(tuple(columns), weight.device)]
    return linear_outliers_canonical(x, q, bias, threshold, columns, kept)


def capturing(x: Tensor) -> bool:
    """Whether torch's current stream records a graph."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=4096)
def _indices(columns: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(columns, dtype=torch.int64, device=device)
