"""Statically quantized products, and the codes that go in and out of them, on CPU tensors by the native module."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _rquant
from .._native import static as native
from .._native.static import Epilogue

_FEW = 4
"""Channels of a picture, which are laid out anew and rounded in one."""


def linear_static(
    x: Tensor, x_scale: Tensor, x_zero: Tensor, panels: Tensor, bias: Tensor | None, n: int,
    addend: Tensor | None, addend_scale: Tensor | None, addend_zero: Tensor | None, lo: float | None, hi: float | None,
    out_scale: Tensor | None, out_zero: Tensor | None, dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """int8 codes `[..., k]` times a packed weight `[n, k]`: `[..., n]`, int8 under `out_scale` or floats of `dtype`."""
    *rows, k = x.shape
    out = torch.empty((*rows, n), dtype=dtype if out_scale is None else torch.int8)
    m = out.numel() // n if n else 0
    sizes = (m, 1, 1, k, n, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0)
    if addend is not None:
        addend = addend.expand_as(out).reshape(m, n).contiguous()
    epilogue = Epilogue(addend, addend_scale, addend_zero, lo, hi, out_scale, out_zero)
    native.conv(
        x.reshape(m, k).contiguous(), (x_scale, x_zero), sizes, panels, bias, epilogue, out.view(m, n)
    )
    return out


def conv_static(
    x: Tensor, x_scale: Tensor, x_zero: Tensor, panels: Tensor, bias: Tensor | None, out_channels: int,
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    transposed: bool, output_padding: Sequence[int],
    addend: Tensor | None, addend_scale: Tensor | None, addend_zero: Tensor | None, lo: float | None, hi: float | None,
    out_scale: Tensor | None, out_zero: Tensor | None, dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """int8 codes `[N, C, H, W]` convolved with a packed weight, in channels-last memory.

    `padding`: top, left, bottom, right. `x_scale` has one entry, or one a sample. int8 under `out_scale`, or floats of
    `dtype`.
    """
    batch, channels, height, width = x.shape
    sizes = (
        batch, height, width, channels, out_channels, *kernel, *stride, *padding, *dilation, groups, int(transposed),
        *output_padding,
    )  # fmt: skip
    shape = (batch, out_channels, *_rquant.conv_size(sizes))
    out = torch.empty(
        shape, dtype=dtype if out_scale is None else torch.int8, memory_format=torch.channels_last
    )
    last = torch.channels_last
    addend = None if addend is None else addend.contiguous(memory_format=last)
    epilogue = Epilogue(addend, addend_scale, addend_zero, lo, hi, out_scale, out_zero)
    x = x.contiguous(memory_format=last)
    native.conv(x, (x_scale, x_zero), sizes, panels, bias, epilogue, out)
    return out


def conv_fixed_static(
    x: Tensor, x_zero: Tensor, panels: Tensor, bias: Tensor | None, out_channels: int,
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    transposed: bool, output_padding: Sequence[int], multiplier: Tensor, shift: Tensor, out_zero: Tensor, lo: int, hi: int,
) -> Tensor:  # fmt: skip
    """`conv_static` finished in integers: `clamp(round((sum + bias) * multiplier / 2**shift) + out_zero, lo, hi)`, int8.

    `bias`, `multiplier` and `shift` (1 to 62) are int32, one a channel; the exact product is rounded once, half to even.
    """
    batch, channels, height, width = x.shape
    sizes = (
        batch, height, width, channels, out_channels, *kernel, *stride, *padding, *dilation, groups, int(transposed),
        *output_padding,
    )  # fmt: skip
    last = torch.channels_last
    shape = (batch, out_channels, *_rquant.conv_size(sizes))
    out = torch.empty(shape, dtype=torch.int8, memory_format=last)
    fixed = (bias, multiplier, shift, out_zero)
    native.conv_fixed(x.contiguous(memory_format=last), x_zero, sizes, panels, fixed, (lo, hi), out)
    return out


def quantize_static(x: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes of `x` with its strides where they are dense, and bool `[x.shape[0]]`: which samples are finite."""
    samples = x.shape[0] if x.dim() else 1
    finite = torch.empty((samples,), dtype=torch.bool)
    codes = torch.empty_like(x, dtype=torch.int8)
    order = _memory_order(codes)
    if samples > 1 and order[0] != 0:  # samples lie interleaved
        whole, finite = quantize_static(x.contiguous(), scale, zero)
        return codes.copy_(whole), finite
    if x.stride() != codes.stride():
        x = torch.empty_like(codes, dtype=x.dtype).copy_(x)
    native.quantize(x.permute(order), scale, zero, codes.permute(order), finite)
    return codes, finite


def quantize_images_static(x: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize_static` of images `[N, C, H, W]`, with codes in channels-last memory. On the CPU only."""
    if x.dim() != 4:
        raise ValueError(f"x: expected 4 dimensions [N, C, H, W], got shape {tuple(x.shape)}")
    if x.is_contiguous() and x.shape[1] <= _FEW:
        codes = torch.empty_like(x, dtype=torch.int8, memory_format=torch.channels_last)
        finite = torch.empty(x.shape[:1], dtype=torch.bool)
        native.quantize_images(x, scale, zero, codes, finite)
        return codes, finite
    return quantize_static(x.contiguous(memory_format=torch.channels_last), scale, zero)


def dequantize_static(codes: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    """`scale * (codes - zero)` of `dtype`, with the strides of `codes` where they are dense."""
    out = torch.empty_like(codes, dtype=dtype)
    if codes.stride() != out.stride():
        codes = torch.empty_like(out, dtype=torch.int8).copy_(codes)
    order = _memory_order(codes)
    native.dequantize(codes.permute(order), scale, zero, out.permute(order))
    return out


def _memory_order(x: Tensor) -> list[int]:
    """The dimensions from the slowest to the fastest; those of one element, whose strides say nothing, last, but samples first."""
    key = lambda d: (d == 0 and x.shape[0] == 1, x.shape[d] != 1, x.stride(d))  # noqa: E731
    return sorted(range(x.dim()), key=key, reverse=True)
