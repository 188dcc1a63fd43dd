"""LLM.int8() by kernels: which columns are multiplied in float is found, listed and read on the device; nothing waits."""

from functools import lru_cache

import torch
from torch import Tensor

from .._native import QMatrix
from .._native import cuda as native
from . import routes
from .driver import ready


def lists_outliers(q: QMatrix, x: Tensor) -> bool:
    """Whether kernels take this weight and x."""
    if not q.cols or not ready() or not native.is_float(x.dtype):
        return False
    return routes.has_kernels(q, native.place(x)[0]) and routes.sums_fit(q)


def linear_outliers(
    x: Tensor,
    q: QMatrix,
    bias: Tensor | None,
    threshold: float,
    columns: tuple[int, ...] | None,
    column_weight: Tensor | None,
) -> Tensor:
    """x `[m, k]` -> `[m, n]`: columns of x that reach `threshold`, or `columns`, in float, by `column_weight` `[n, columns]`
    or the dequantized weight; the others in int8."""
    x, q = x.contiguous(), routes.plain(q)
    (m, k), n = x.shape, q.codes.shape[0]
    if columns is None:
        flags = torch.zeros(k, dtype=torch.uint8, device=x.device)
        listed, count = (x.new_empty(size, dtype=torch.int32) for size in (k, 1))
        native.find_outliers(x, threshold, flags, listed, count)
    else:
        flags, listed, count = _fixed(columns, k, x.device)
    codes, scale = routes.quantize_rows(x, None, flags)
    kept = None if column_weight is None else column_weight.contiguous()
    added, out = x.new_empty((m, n), dtype=torch.float32), x.new_empty((m, n))
    bias = None if bias is None else bias.contiguous()
    native.outlier_products(x, listed, count, kept, q, bias, added)
    native.linear_int8(codes, scale, q, added, out)
    return out


@lru_cache(maxsize=4096)
def _fixed(columns: tuple[int, ...], k: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Flags, list and number of columns on the device, copied there once."""
    flags = torch.zeros(k, dtype=torch.uint8)
    flags[list(columns)] = 1
    listed = torch.tensor(columns, dtype=torch.int32), torch.tensor([len(columns)], dtype=torch.int32)
    return flags.to(device), listed[0].to(device), listed[1].to(device)
