"""The ops on int8 codes between layers, on CPU tensors, by the native module: here each finds its order of memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._native import elementwise as native


def _like(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in dense memory, its own if that is dense, and an output of the same strides."""
    out = torch.empty_like(x, dtype=dtype)
    if out.stride() != x.stride():
        x = torch.empty_like(x).copy_(x)
    return x, out


def _images(x: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
    """x in channels-last memory, and its sizes in that order."""
    if x.dim() != 4:
        raise ValueError(f"x: expected 4 dimensions [N, C, H, W], got shape {tuple(x.shape)}")
    n, c, h, w = x.shape
    return x.contiguous(memory_format=torch.channels_last), (n, h, w, c)


def _pair(values: Sequence[int], argument: str, least: int) -> tuple[int, int]:
    if len(values) != 2 or min(values) < least:
        raise ValueError(f"{argument}: expected two numbers, at least {least}, got {list(values)}")
    return values[0], values[1]


def _empty_images(n: int, c: int, h: int, w: int) -> Tensor:
    return torch.empty((n, c, h, w), dtype=torch.int8, memory_format=torch.channels_last)


def add_static(
    a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor,
    lo: float | None, hi: float | None, out_scale: Tensor, out_zero: Tensor,
) -> Tensor:  # fmt: skip
    """Sum of two tensors of codes of one shape, clamped to [lo, hi]: codes of the sum, in a's memory order."""
    if a.shape != b.shape:
        raise ValueError(f"b: expected a's shape {tuple(a.shape)}, got {tuple(b.shape)}")
    a, out = _like(a, torch.int8)
    if b.stride() != a.stride():
        b = torch.empty_like(a, dtype=b.dtype).copy_(b)
    native.add((a, a_scale, a_zero), (b, b_scale, b_zero), lo, hi, (out, out_scale, out_zero))
    return out


def requantize_static(
    x: Tensor,
    scale: Tensor,
    zero: Tensor,
    lo: float | None,
    hi: float | None,
    out_scale: Tensor,
    out_zero: Tensor,
) -> Tensor:
    """Codes of the same values, clamped to [lo, hi], under another scale and zero point."""
    x, out = _like(x, torch.int8)
    native.requantize((x, scale, zero), lo, hi, (out, out_scale, out_zero))
    return out


def lookup_static(x: Tensor, table: Tensor) -> Tensor:
    """`table[q + 128]` of each code: any function of one variable, int8 `[256]`."""
    x, out = _like(x, torch.int8)
    native.lookup(x, table.contiguous(), out)
    return out


def concat_static(
    xs: Sequence[Tensor], scales: Sequence[Tensor], zeros: Sequence[Tensor], dim: int, out_scale: Tensor, out_zero: Tensor
) -> Tensor:  # fmt: skip
    """Codes of all of `xs` under one scale and zero point, side by side along `dim`; images in channels-last memory."""
    if not len(xs) == len(scales) == len(zeros) > 0:
        raise ValueError(
            f"scales, zeros: expected one for each of xs, {len(xs)}, got {len(scales)} and {len(zeros)}"
        )
    shape, dims = list(xs[0].shape), xs[0].dim()
    if not -dims <= dim < dims:
        raise ValueError(f"dim: expected a dimension of {dims}, got {dim}")
    dim %= dims
    for x in xs[1:]:
        if x.dim() != dims or any(
            a != b for i, (a, b) in enumerate(zip(x.shape, shape, strict=True)) if i != dim
        ):
            raise ValueError(
                f"xs: expected shapes equal but for dimension {dim}, got {[tuple(x.shape) for x in xs]}"
            )
    shape[dim] = sum(x.shape[dim] for x in xs)
    order, last = (0, 1, 2, 3) if dims == 4 else range(dims), torch.contiguous_format
    if dims == 4:
        order, last = (0, 2, 3, 1), torch.channels_last
    out = torch.empty(shape, dtype=torch.int8, memory_format=last)
    rows = 1
    for i in order:
        if i == dim:
            break
        rows *= shape[i]
    parts = [(x.contiguous(memory_format=last), s, z) for x, s, z in zip(xs, scales, zeros, strict=True)]
    native.concat(parts, rows, (out, out_scale, out_zero))
    return out


def max_pool_static(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """`torch.nn.functional.max_pool2d` of codes `[N, C, H, W]`."""
    x, shape = _images(x)
    sizes = _pair(kernel, "kernel", 1), _pair(stride, "stride", 1), _pair(padding, "padding", 0)
    steps = _pair(dilation, "dilation", 1)
    out = _empty_images(shape[0], shape[3], *native.pooled_size(shape, *sizes, steps, ceil_mode))
    native.max_pool(x, shape, *sizes, steps, ceil_mode, out)
    return out


def avg_pool_static(
    x: Tensor, scale: Tensor, zero: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    ceil_mode: bool, count_include_pad: bool, divisor: int | None, out_scale: Tensor, out_zero: Tensor,
) -> Tensor:  # fmt: skip
    """`torch.nn.functional.avg_pool2d` of codes: exact sums of q - Z, times scale over count, as codes."""
    x, shape = _images(x)
    sizes = _pair(kernel, "kernel", 1), _pair(stride, "stride", 1), _pair(padding, "padding", 0)
    out = _empty_images(shape[0], shape[3], *native.pooled_size(shape, *sizes, (1, 1), ceil_mode))
    to = (out, out_scale, out_zero)
    native.avg_pool((x, scale, zero), shape, *sizes, ceil_mode, count_include_pad, divisor, to)
    return out


def adaptive_avg_pool_static(
    x: Tensor, scale: Tensor, zero: Tensor, output_size: Sequence[int], out_scale: Tensor, out_zero: Tensor
) -> Tensor:
    """`torch.nn.functional.adaptive_avg_pool2d` of codes, as `avg_pool_static`."""
    x, shape = _images(x)
    size = _pair(output_size, "output_size", 0)
    out = _empty_images(shape[0], shape[3], *size)
    native.adaptive_avg_pool((x, scale, zero), shape, size, (out, out_scale, out_zero))
    return out


def _params(scale: Tensor | None, zero: Tensor | None, of: str = "") -> tuple[Tensor, Tensor] | None:
    if scale is not None and zero is not None:
        return scale, zero
    if scale is not None or zero is not None:
        raise ValueError(f"{of}scale, {of}zero: expected both or neither, got one")
    return None


def _floats(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.float().contiguous()


def layer_norm_static(
    x: Tensor, scale: Tensor | None, zero: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    eps: float, features: int, out_scale: Tensor, out_zero: Tensor,
) -> Tensor:  # fmt: skip
    """Layer norm over the last `features` elements, of floats or of codes under `scale`, `zero`; its codes.

    A row with NaN or infinity becomes `out_zero`.
    """
    if features <= 0 or x.numel() % features:
        raise ValueError(f"features: expected a divisor of x's {x.numel()} elements, got {features}")
    out = torch.empty(x.shape, dtype=torch.int8)
    to, weight, bias = (out, out_scale, out_zero), _floats(weight), _floats(bias)
    native.layer_norm(x.contiguous(), _params(scale, zero), weight, bias, eps, features, to)
    return out


def _channels(x: Tensor, channels: int, dim: int, argument: str) -> int:
    """Consecutive elements of a channel along `dim` of dense x."""
    if not -x.dim() <= dim < x.dim() or x.shape[dim] != channels:
        raise ValueError(
            f"{argument}: expected one for each of dimension {dim} of {tuple(x.shape)}, got {channels}"
        )
    return x.stride(dim) if channels > 1 else max(x.numel(), 1)


def affine_static(
    x: Tensor, scale: Tensor, zero: Tensor, mul: Tensor, add: Tensor, lo: float | None, hi: float | None,
    out_scale: Tensor | None, out_zero: Tensor | None, dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """`clamp(x * mul + add)` by channel (dimension 1) of codes: codes under `out_scale`, `out_zero`, else floats of `dtype`."""
    params = _params(out_scale, out_zero, "out_")
    x, out = _like(x, torch.int8 if params is not None else dtype or torch.float32)
    inner = _channels(x, mul.numel(), 1, "mul")
    native.affine((x, scale, zero), inner, mul.contiguous(), add.contiguous(), lo, hi, out, params)
    return out


def _with_parameters(
    x: Tensor, scale: Tensor, zero: Tensor, dim: int | None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Dense x, its parameters, and how many consecutive elements each pair of them is for."""
    if dim is not None:
        return x, scale.contiguous(), zero.contiguous(), _channels(x, scale.numel(), dim, "scale")
    if scale.numel() != 1:
        raise ValueError(f"scale: expected 1 element without a dim, got shape {tuple(scale.shape)}")
    return x, scale, zero, max(x.numel(), 1)


def fake_quantize_static(x: Tensor, scale: Tensor, zero: Tensor, dim: int | None = None) -> Tensor:
    """x as its codes read back, of x's dtype; NaN stays NaN, infinity is clipped. A scale and a zero point for all, or one
    for each place along `dim`."""
    x, out = _like(x, x.dtype)
    native.fake_quantize(*_with_parameters(x, scale, zero, dim), out, None)
    return out


def inside_range_static(x: Tensor, scale: Tensor, zero: Tensor, dim: int | None = None) -> Tensor:
    """bool, of x's shape: whether rounding alone, without clipping, gave the element's code; False for NaN."""
    x, inside = _like(x, torch.bool)
    native.fake_quantize(*_with_parameters(x, scale, zero, dim), None, inside)
    return inside
