"""Linear layers of calibrated activations on CUDA tensors: the kernel of int8 activations, and the epilogue in torch.

Codes a of x with zero point z stand for `s (a - z)`, and the kernel knows none of x: `sum((a - z) w) = sum(a w) - z sum(w)`, so
what it leaves out is a bias that only the weight decides. Integers are exact, floats within rounding of the reference's.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .._native import QMatrix
from .._native import cuda as native
from ..cuda import routes
from ..cuda.driver import ready
from . import cuda, static_canonical, static_reference
from .cuda_outliers import capturing
from .elsewhere import check_devices

_sums: Any = WeakTensorKeyDictionary()  # of a weight's codes: the versions of its tensors, and the sums


def linear_canonical_static(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    kind: int,
    group_size: int,
    bias: Tensor | None,
    *epilogue: Any,
) -> Tensor:
    """As `static_canonical.linear_canonical_static`."""
    addend, addend_scale, addend_zero, lo, hi, out_scale, out_zero, dtype = epilogue
    check_devices(x, x_scale, x_zero, codes, scale, zero_point, bias, addend, out_scale)
    k, n = x.shape[-1], codes.shape[0]
    q = QMatrix(codes, scale, zero_point, k, kind, group_size)
    if not (k and ready() and cuda.multiplies_integers("linear_canonical_static", q, x)):
        return static_canonical.linear_canonical_static(
            x, x_scale, x_zero, codes, scale, zero_point, kind, group_size, bias, *epilogue
        )
    sums = _row_sums(q)
    rows, q = native.aligned(x.reshape(-1, k)), routes.plain(q)
    each = x_scale.float().reshape(-1).expand(rows.shape[0]).contiguous()
    v = routes.linear_int8(cuda.integer_route(rows, q), rows, each, q, None, torch.float32)
    v = v - (x_scale * x_zero).reshape(-1, 1) * sums
    if bias is not None:
        v = v + bias.float()
    if addend is not None and addend_scale is not None and addend_zero is not None:
        v = v + static_reference.decode(addend.reshape(-1, n), addend_scale, addend_zero)
    if out_scale is not None and out_zero is not None:
        v = static_reference.to_codes(v / out_scale, lo, hi, out_scale, out_zero)
    else:
        v = v.clamp(*static_reference.ends(lo, hi)).to(dtype)
    return v.reshape(*x.shape[:-1], n)


def _row_sums(q: QMatrix) -> Tensor:
    """float32 `[n]`: of each row of the dequantized weight. Kept while the weight lives unchanged."""
    codes = q.codes
    version = [-1 if t.is_inference() else t._version for t in q[:3] if t is not None]
    kept = _sums.get(codes)
    if kept is not None and kept[0] == version:
        return kept[1]  # type: ignore[no-any-return]
    sums = routes.dequantize(routes.plain(q), torch.float32).sum(1)
    if not capturing(codes):  # what a graph computes is there when it is replayed
        _sums[codes] = version, sums
    return sums
