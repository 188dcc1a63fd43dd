"""The shortest way of a statically quantized product into the native module: for plain CPU tensors in eager mode.

A call of an op costs some 30 us for its twenty arguments, as much as a small convolution; this one 10. Programs that
are compiled, exported or traced, and modes that watch operators, see `rquant::conv_static` and `rquant::linear_static`.
"""

import torch
from torch import Tensor

from . import _rquant
from ._threads import get_num_threads

_CODES = {torch.float32: _rquant.FLOAT32, torch.float16: _rquant.FLOAT16, torch.bfloat16: _rquant.BFLOAT16}
Sizes = tuple[int, ...]
"""As `_rquant.conv_static` takes them."""


def possible(x: Tensor) -> bool:
    """Whether nobody watches and `x` is a tensor with memory here."""
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._is_tracing()
        and x.is_cpu
    )


def _one(scale: Tensor, zero: Tensor) -> bool:
    return (
        scale.dtype is torch.float32
        and zero.dtype is torch.int8
        and scale.numel() == 1
        and zero.numel() == 1
        and scale.is_cpu
        and zero.is_cpu
    )


def product(
    sizes: Sizes,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    panels: Tensor,
    bias: Tensor | None,
    addend: tuple[Tensor, Tensor, Tensor] | None,
    lo: float,
    hi: float,
    qparams: tuple[Tensor, Tensor] | None,
    out: Tensor,
) -> bool:
    """Write the product into `out`, dense as `x` is; False, and nothing done, where an argument is not quite as it is meant.

    The ops then take the call, and say what is wrong.
    """
    last = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    fits = (
        x.dtype is torch.int8
        and x.is_contiguous(memory_format=last)
        and _one(x_scale, x_zero)
        and panels.dtype is torch.uint8
        and (qparams is None or _one(*qparams))
        and (bias is None or (bias.is_cpu and bias.is_contiguous() and bias.numel() == sizes[4] and bias.dtype in _CODES))
    )  # fmt: skip
    if not fits:
        return False
    added = (0, 0, 0)
    if addend is not None:
        q, scale, zero = addend
        if not (
            q.dtype is torch.int8
            and q.is_contiguous(memory_format=last)
            and q.shape == out.shape
            and _one(scale, zero)
        ):
            return False
        added = q.data_ptr(), scale.data_ptr(), zero.data_ptr()
    _rquant.conv_static(  # type: ignore[call-arg]
        x.data_ptr(), x_scale.data_ptr(), 1, x_zero.data_ptr(), sizes, panels.data_ptr(), panels.nbytes,
        *((0, 0) if bias is None else (bias.data_ptr(), _CODES[bias.dtype])), *added, lo, hi, out.data_ptr(),
        *((_CODES[out.dtype], 0, 0) if qparams is None else (0, qparams[0].data_ptr(), qparams[1].data_ptr())),
        get_num_threads(),
    )  # fmt: skip
    return True
