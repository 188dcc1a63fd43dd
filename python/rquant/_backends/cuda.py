"""The ops on CUDA tensors: kernels where there is one, torch's matrix product on dequantized weights where that is faster,
and plain torch for the rest, which is said once for each cause.

Which route a product takes for how many rows is `cuda.table`'s to say.
"""

import torch
from torch import Tensor

from .._native import QMatrix
from .._native import cuda as native
from ..cuda import compiler, routes, table
from ..cuda.driver import device_name, has_tensor_cores, ready
from . import reference
from .elsewhere import check_devices, tell

__all__ = ["compiler", "ready"]

_FLOAT8 = (43, 52)


def dequantize_canonical(q: QMatrix, dtype: torch.dtype) -> Tensor:
    """The float weight `[rows, cols]`."""
    check_devices(*q[:3])
    if not _readable(q) or not native.is_float(dtype) or not ready():
        if ready():
            tell("dequantize_canonical", *_unreadable(q, dtype))
        return reference.dequantize_canonical(q, dtype)
    return routes.dequantize(routes.plain(q), dtype)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes `[m, k]` and float32 scale `[m]` of activations."""
    if ready() and native.is_float(x.dtype):
        return _quantize_rows(x, None)
    if ready():
        tell("quantize_rows", *_unknown(x.dtype))
    return reference.quantize_rows(x)


def _quantize_rows(x: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    return routes.quantize_rows(native.aligned(x), None if scale is None else scale.contiguous())


def linear_canonical(
    x: Tensor, q: QMatrix, bias: Tensor | None, integer: bool, scale_of_x: Tensor | None = None
) -> Tensor:
    """x `[..., k]` -> `[..., n]` in both arithmetics; a row with NaN or infinity gives a row of NaN."""
    check_devices(x, *q[:3], bias, scale_of_x)
    if x.shape[-1] != q.cols:
        raise ValueError(f"x: expected a last dimension of {q.cols}, got shape {tuple(x.shape)}")
    computed = q.cols > 0 and ready() and native.is_float(x.dtype)
    if not (computed and _readable(q) and _multiplied(q, x, integer)):
        if q.cols > 0 and ready() and not (computed and _readable(q)):
            tell("linear_canonical", *_unreadable(q, x.dtype))
        return reference.linear_canonical(x, q, bias, integer, scale_of_x)
    rows, q = native.aligned(x.reshape(-1, q.cols)), routes.plain(q)
    bias = None if bias is None else bias.contiguous()
    out = _integer(rows, q, bias, scale_of_x) if integer else _float(rows, q, bias)
    return out.reshape(*x.shape[:-1], q.codes.shape[0])


def _float(rows: Tensor, q: QMatrix, bias: Tensor | None) -> Tensor:
    index, _ = native.place(rows)
    route = "small" if _few(rows, q) else "dequantize"
    if rows.dtype != torch.float32 and routes.has_kernels(q, index):
        route = _route(index, str(rows.dtype).removeprefix("torch."), q, rows.shape[0])
    return routes.linear(route, rows, q, bias)


def _few(x: Tensor, q: QMatrix) -> bool:
    """Whether a kernel for few rows takes x of any float dtype, as it is or as int8, on any device."""
    return routes.groups_fit(q) and x.numel() // q.cols <= table.MOST_SMALL


def _integer(rows: Tensor, q: QMatrix, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    codes, row_scale = _quantize_rows(rows, scale)
    return routes.linear_int8(integer_route(codes, q), codes, row_scale, q, bias, rows.dtype)


def integer_route(codes: Tensor, q: QMatrix) -> str:
    """The way of int8 `[m, k]` and a weight of which `multiplies_integers`."""
    index, _ = native.place(codes)
    if not has_tensor_cores(index):
        return "integer" if _few(codes, q) else "int_mm"
    return _route(index, "int8", q, codes.shape[0]) if routes.takes_int_mm(codes.shape[0], q) else "integer"


def _route(index: int, arithmetic: str, q: QMatrix, rows: int) -> str:
    group = -1 if routes.whole_rows(q) else q.group_size
    return table.of_device(index).route(arithmetic, q.kind, group, q.codes.shape[0], q.cols, rows)


def _multiplied(q: QMatrix, x: Tensor, integer: bool) -> bool:
    """Whether some route multiplies by a readable weight; says once why a product is not of the fast ones."""
    if integer:
        return multiplies_integers("linear_canonical", q, x)
    if q.kind in _FLOAT8 or _few(x, q):
        return True  # of float8 only the storage is promised to be small
    index, _ = native.place(x)
    if not routes.has_kernels(q, index):
        tell("linear_canonical", *_without_kernel(q, index))
    elif x.dtype == torch.float32:
        tell(
            "linear_canonical",
            "kernels multiply float16 and bfloat16, or a few rows, and x is float32: the weight is dequantized for each call",
            "use model.half() or model.bfloat16(), or activations='int8', which takes float32 too",
        )
    return True


def multiplies_integers(op: str, q: QMatrix, x: Tensor) -> bool:
    """Whether int8 rows of x's shape are multiplied by this weight exactly; says once why they are not."""
    index, _ = native.place(x)
    kernels = (routes.has_kernels(q, index) or _few(x, q)) and routes.sums_fit(q)
    fits = kernels or routes.takes_int_mm(x.numel() // q.cols, q)
    if not fits:
        tell(op, *_without_kernel(q, index))
    return fits


def _without_kernel(q: QMatrix, index: int) -> tuple[str, str]:
    """Reason and remedy of a product of integers that kernels do not make."""
    if not has_tensor_cores(index):
        return (
            f"products of more than {table.MOST_SMALL} rows need compute capability 8.0, and device {index} is "
            f"{device_name(index)}: the weight is dequantized for each call",
            "a later GPU has kernels",
        )
    if not (q.group_size % 32 == 0 or routes.whole_rows(q)):
        return (
            f"kernels take groups of a multiple of 32, and the weight has {q.group_size}: it is dequantized for each call",
            "quantize with group_size 32, 64 or 128, or -1 for one group a row",
        )
    return f"int32 may not hold the sum of a group of {q.cols}", "quantize with group_size=128"


def _readable(q: QMatrix) -> bool:
    """Whether kernels can dequantize it."""
    return q.kind in routes.INTEGERS or q.kind in _FLOAT8


def _unreadable(q: QMatrix, dtype: torch.dtype) -> tuple[str, str]:
    if not _readable(q):
        return f"kernels do not know codes of kind {q.kind}", "use int8, int4, int2 or float8"
    return _unknown(dtype)


def _unknown(dtype: torch.dtype) -> tuple[str, str]:
    return f"kernels know float32, float16 and bfloat16, not {dtype}", "use model.half() or model.bfloat16()"


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
    """Quantize the weight `[n, k]` anew, in plain torch, and multiply as the frozen layer does."""
    check_devices(x, weight, bias)
    q = reference.chosen(weight, kind, group_size, symmetric, optimizer)
    return linear_canonical(x, q, bias, integer)


def embedding_canonical(ids: Tensor, q: QMatrix, dtype: torch.dtype) -> Tensor:
    """Rows `ids` of the dequantized weight, `[..., dim]`; of NaN for an id outside of the weight, which nobody waits to hear of."""
    check_devices(ids, *q[:3])
    if _readable(q) and native.is_float(dtype) and ids.dtype in (torch.int64, torch.int32) and ready():
        return routes.gather_rows(routes.plain(q), ids.contiguous(), dtype)
    rows = dequantize_canonical(q.map(lambda t: t[ids.reshape(-1)]), dtype)
    return rows.reshape(*ids.shape, q.cols)
