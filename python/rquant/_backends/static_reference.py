"""The ops of statically quantized activations in plain torch: the oracle in tests, and what runs without kernels.

Written to be read. Sums of integers go through float64, which holds them exactly; what follows them is float32 in the
order that the kernels keep, so that integers come out equal. A fused multiply-add is one in float64, rounded once: the
product of two float32 is exact there.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .. import _native
from .._native import QMatrix
from .reference import expand, unpack_codes, zeros_of

LARGEST = 127
"""Codes of activations lie in [-127, 127]: those on which every instruction set's kernels are exact."""


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`a * b + c` of float32 tensors, rounded once (but for the rare sum that float64 does not hold either)."""
    return (a.double() * b.double() + c.double()).float()


def encode(v: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """`clip(round_half_even(v / scale) + zero, -127, 127)` of float32 `v`; int8. NaN becomes `zero`."""
    q = (v / scale).round() + zero
    return torch.where(q.isnan(), zero.float(), q).clamp(-LARGEST, LARGEST).to(torch.int8)


def decode(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """`scale * (q - zero)` in float32."""
    return scale * (q.float() - zero.float())


def quantize_static(x: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes of x (any shape; strides kept where they are dense), and bool `[x.shape[0]]`: samples without NaN and
    infinity. Such an element's code is `zero`."""
    finite = x.isfinite()
    codes = encode(torch.where(finite, x.float(), 0.0), scale, zero)
    return codes, finite.reshape(x.shape[0], -1).all(1) if x.dim() else finite.reshape(1)


def dequantize_static(codes: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    """`scale * (q - zero)`, of `dtype`."""
    return decode(codes, scale, zero).to(dtype)


def _along(values: Tensor, dim: int | None, x: Tensor) -> Tensor:
    """One value for each place of x along `dim`, or one for all, so that it broadcasts to x."""
    if dim is None:
        return values.float()
    return values.float().reshape([-1 if i == dim % x.dim() else 1 for i in range(x.dim())])


def fake_quantize_static(x: Tensor, scale: Tensor, zero: Tensor, dim: int | None = None) -> Tensor:
    """x as its codes read back, of x's dtype; NaN stays NaN, infinity is clipped. A scale and a zero point for all, or one
    for each place along `dim`."""
    scale, zero = _along(scale, dim, x), _along(zero, dim, x)
    out = decode(encode(x.float(), scale, zero), scale, zero).to(x.dtype)
    return torch.where(x.isnan(), x, out)


def inside_range_static(x: Tensor, scale: Tensor, zero: Tensor, dim: int | None = None) -> Tensor:
    """bool, of x's shape: whether rounding alone, without clipping, gave the element's code; False for NaN."""
    steps = (x.float() / _along(scale, dim, x)).round() + _along(zero, dim, x)
    return (steps >= -LARGEST) & (steps <= LARGEST)


class _Part(NamedTuple):
    """Of a product, what one group of steps gives."""

    sums: Tensor
    """Exact integers as float32, `[n, channels, ...]`."""
    scale: Tensor
    """The weight's, one a channel, so that it broadcasts to `sums`."""


def _weighted(parts: Sequence[_Part]) -> Tensor:
    """`f`: each group's sums times its scales, added up in order."""
    f = parts[0].sums * parts[0].scale
    for part in parts[1:]:
        f = fma(part.sums, part.scale, f)
    return f


def _add(v: Tensor, addend: Tensor | None, scale: Tensor, zero: Tensor | None) -> Tensor:
    if addend is None:
        return v
    return fma(scale, addend.float() - zero.float(), v)  # type: ignore[union-attr]


def _epilogue(
    parts: Sequence[_Part],
    x_scale: Tensor,
    bias: Tensor | None,
    addend: Tensor | None,
    addend_scale: Tensor | None,
    addend_zero: Tensor | None,
    lo: float | None,
    hi: float | None,
    out_scale: Tensor | None,
    out_zero: Tensor | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """What is done to the sums; `x_scale` of one value or one a sample.

    Floats are `clamp(addend + (f * x_scale + bias))`. Where codes are asked for, their steps are the unit: scales are
    folded into one multiplier a channel, `m = scale * (x_scale / out_scale)`, and `v = fma(sums, m, bias / out_scale)`
    (of weights with several scales a channel `fma(f, x_scale / out_scale, ..)`), and the clamp is that of codes, to those
    of its ends. NaN, as of a sample whose scale is none, becomes the lower end.
    """
    x_scale = x_scale.reshape(-1, *[1] * (parts[0].sums.dim() - 1))
    bias = x_scale.new_zeros(1) if bias is None else bias.float()
    bias = bias.reshape(-1, *[1] * (parts[0].sums.dim() - 2))
    if out_scale is None or out_zero is None:
        v = fma(_weighted(parts), x_scale, bias)
        return _add(v, addend, addend_scale, addend_zero).clamp(*ends(lo, hi)).to(dtype)
    factor, bias = x_scale / out_scale, bias / out_scale
    if len(parts) == 1:
        v = fma(parts[0].sums, parts[0].scale * factor, bias)
    else:
        v = fma(_weighted(parts), factor, bias)
    v = _add(v, addend, None if addend_scale is None else addend_scale / out_scale, addend_zero)
    return to_codes(v, lo, hi, out_scale, out_zero)


def ends(lo: float | None, hi: float | None) -> tuple[float, float]:
    """Of a clamp; None is no end."""
    return -math.inf if lo is None else lo, math.inf if hi is None else hi


def to_codes(v: Tensor, lo: float | None, hi: float | None, scale: Tensor, zero: Tensor) -> Tensor:
    """Codes of values in their own steps: `clip(round_half_even(v) + zero, encode(lo), encode(hi))`; NaN is the lower end."""
    least, most = (encode(v.new_full((), end), scale, zero).float() for end in ends(lo, hi))
    q = v.round() + zero
    return torch.where(q.isnan(), least, q).clamp(least, most).to(torch.int8)


def _products(q: QMatrix, multiply: Callable[[Tensor], Tensor]) -> list[_Part]:
    """Each group's exact sums, by `multiply(integers [n, k])` in float64, and its scales."""
    codes = unpack_codes(q.codes, q.cols, q.kind).double()
    whole = codes - expand(zeros_of(q.scale, q.zero_point, q.kind), q.cols, q.group_size).double()
    size = max(q.cols, 1) if q.group_size == -1 else q.group_size
    parts = []
    for g in range(q.scale.shape[1]):
        first, last = g * size, min((g + 1) * size, q.cols)
        part = functional.pad(whole[:, first:last], (first, q.cols - last))
        sums = multiply(part).float()
        parts.append(_Part(sums, q.scale[:, g].float().reshape(-1, *[1] * (sums.dim() - 2))))
    return parts


def _matrix(weight: Tensor | QMatrix, x: Tensor) -> QMatrix:
    """A weight of the ops, panels or canonical, in canonical form on x's device."""
    if isinstance(weight, QMatrix):
        return weight
    return _native.unpack(weight.cpu()).map(lambda t: t.to(x.device))


def linear_static(
    x: Tensor, x_scale: Tensor, x_zero: Tensor, panels: Tensor | QMatrix, bias: Tensor | None, n: int, *epilogue: object
) -> Tensor:  # fmt: skip
    """Codes `[..., k]` times a packed weight `[n, k]`; the epilogue's arguments as `conv_static`'s."""
    a = (x.double() - x_zero.double()).reshape(-1, x.shape[-1])
    parts = _products(_matrix(panels, x), lambda w: a @ w.T)
    addend, *rest = epilogue
    flat = addend.reshape(-1, n) if isinstance(addend, Tensor) else None
    return _epilogue(parts, x_scale, bias, flat, *rest).reshape(*x.shape[:-1], n)  # type: ignore[arg-type]


def conv_static(
    x: Tensor, x_scale: Tensor, x_zero: Tensor, panels: Tensor | QMatrix, bias: Tensor | None, out_channels: int,
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    transposed: bool, output_padding: Sequence[int], *epilogue: object,
) -> Tensor:  # fmt: skip
    """Codes `[N, C, H, W]` convolved with a packed weight `[out_channels, kh * kw * C / groups]`, channels innermost.

    `padding`: top, left, bottom, right (of a transposed one: what is cut off); padded positions count as 0.0. `x_scale`
    holds one value or one a sample. `addend`: codes of the output's shape. int8 codes under `out_scale`, `out_zero` if
    these are given, else floats of `dtype`. Output in channels-last memory.
    """
    shape = (kernel, stride, padding, dilation, groups, transposed, output_padding)
    multiply = _convolution(x.double() - x_zero.double(), out_channels, *shape)
    parts = _products(_matrix(panels, x), multiply)
    out = _epilogue(parts, x_scale, bias, *epilogue)  # type: ignore[arg-type]
    return out.contiguous(memory_format=torch.channels_last)


def _convolution(
    a: Tensor,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool,
    output_padding: Sequence[int],
) -> Callable[[Tensor], Tensor]:
    """The convolution of float64 `a` by a weight `[out_channels, kh * kw * C / groups]`, channels innermost."""
    kh, kw = kernel

    def multiply(part: Tensor) -> Tensor:
        weight = part.reshape(out_channels, kh, kw, -1).permute(0, 3, 1, 2)
        if not transposed:
            top, left, bottom, right = padding
            padded = functional.pad(a, (left, right, top, bottom))
            return functional.conv2d(padded, weight, None, stride, 0, dilation, groups)  # type: ignore[arg-type]
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)  # [C, out / groups, kh, kw]
        return functional.conv_transpose2d(
            a, weight, None, stride, padding[:2], output_padding, groups, dilation  # type: ignore[arg-type]
        )  # fmt: skip

    return multiply


def conv_fixed_static(
    x: Tensor, x_zero: Tensor, panels: Tensor, bias: Tensor | None, out_channels: int,
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    transposed: bool, output_padding: Sequence[int], multiplier: Tensor, shift: Tensor, out_zero: Tensor, lo: int, hi: int,
) -> Tensor:  # fmt: skip
    """`conv_static` finished in integers: `clamp(round((sum + bias) * multiplier / 2**shift) + out_zero, lo, hi)`, int8.

    `bias`, `multiplier` and `shift` (1 to 62) are int32, one a channel; the exact product is rounded once, half to even. The
    weight has one scale a channel, which the multipliers hold, as they do that of x.
    """
    q = _matrix(panels, x)
    whole = unpack_codes(q.codes, q.cols, q.kind).double() - zeros_of(q.scale, q.zero_point, q.kind).double()
    shape = (kernel, stride, padding, dilation, groups, transposed, output_padding)
    total = _convolution(x.double() - x_zero.double(), out_channels, *shape)(whole).long()
    bias, multiplier, shift = (
        None if t is None else t.long().reshape(-1, 1, 1) for t in (bias, multiplier, shift)
    )  # fmt: skip
    product = (total if bias is None else total + bias).clamp(-(2**31), 2**31 - 1) * multiplier
    below = product >> shift
    rounded = (product + (1 << (shift - 1)) - 1 + (below & 1)) >> shift
    return (
        (rounded + out_zero.long()).clamp(lo, hi).to(torch.int8).contiguous(memory_format=torch.channels_last)
    )


def add_static(
    a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor,
    lo: float | None, hi: float | None, out_scale: Tensor, out_zero: Tensor,
) -> Tensor:  # fmt: skip
    """Sum of two tensors of codes of one shape, clamped to [lo, hi]: codes of the sum, in a's memory order.

    `v = fma(b_scale / out_scale, b - b_zero, a_scale / out_scale * (a - a_zero))` in steps of the output.
    """
    v = fma(b_scale / out_scale, b.float() - b_zero.float(), decode(a, a_scale / out_scale, a_zero))
    return torch.empty_like(a).copy_(to_codes(v, lo, hi, out_scale, out_zero))


def requantize_static(
    x: Tensor,
    scale: Tensor,
    zero: Tensor,
    lo: float | None,
    hi: float | None,
    out_scale: Tensor,
    out_zero: Tensor,
) -> Tensor:
    """Codes of the same values, clamped to [lo, hi], under another scale and zero point: of `scale / out_scale * (x - zero)`
    in steps of the output."""
    return to_codes(decode(x, scale / out_scale, zero), lo, hi, out_scale, out_zero)


def concat_static(
    xs: Sequence[Tensor], scales: Sequence[Tensor], zeros: Sequence[Tensor], dim: int, out_scale: Tensor, out_zero: Tensor
) -> Tensor:  # fmt: skip
    """Codes of all of `xs` under one scale and zero point, side by side along `dim`; images in channels-last memory."""
    parts = [
        torch.where(
            (s == out_scale) & (z == out_zero),
            x,
            requantize_static(x, s, z, -math.inf, math.inf, out_scale, out_zero),
        )
        for x, s, z in zip(xs, scales, zeros, strict=True)
    ]
    whole = torch.cat(parts, dim)
    return whole.contiguous(
        memory_format=torch.channels_last if whole.dim() == 4 else torch.contiguous_format
    )


def max_pool_static(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """`torch.nn.functional.max_pool2d` of codes `[N, C, H, W]`: rounding does not change an order."""
    pooled = functional.max_pool2d(x.float(), kernel, stride, padding, dilation, ceil_mode)  # type: ignore[arg-type]
    return pooled.to(torch.int8).contiguous(memory_format=torch.channels_last)


def _mean(total: Tensor, count: Tensor, scale: Tensor, out_scale: Tensor, out_zero: Tensor) -> Tensor:
    v = total.float() * (scale / out_scale / count.float())
    out = to_codes(v, -math.inf, math.inf, out_scale, out_zero)
    return out.contiguous(memory_format=torch.channels_last)


def avg_pool_static(
    x: Tensor, scale: Tensor, zero: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    ceil_mode: bool, count_include_pad: bool, divisor: int | None, out_scale: Tensor, out_zero: Tensor,
) -> Tensor:  # fmt: skip
    """`torch.nn.functional.avg_pool2d` of codes: exact sums of q - Z, times `scale / out_scale / count`, as codes."""
    a = x.double() - zero.double()
    total = functional.avg_pool2d(a, kernel, stride, padding, ceil_mode, True, 1)  # type: ignore[arg-type]
    if divisor is not None:
        count = torch.full_like(total[:1, :1], divisor)
    else:
        # how many positions torch counts: those inside the image, or inside the padded one
        ones = torch.ones_like(a[:1, :1])
        mean = functional.avg_pool2d(ones, kernel, stride, padding, ceil_mode, count_include_pad)  # type: ignore[arg-type]
        inside = functional.avg_pool2d(ones, kernel, stride, padding, ceil_mode, True, 1)  # type: ignore[arg-type]
        count = (inside / mean).round()
    return _mean(total, count, scale, out_scale, out_zero)


def adaptive_avg_pool_static(
    x: Tensor, scale: Tensor, zero: Tensor, output_size: Sequence[int], out_scale: Tensor, out_zero: Tensor
) -> Tensor:
    """`torch.nn.functional.adaptive_avg_pool2d` of codes, as `avg_pool_static`."""
    a = x.double() - zero.double()

    def edges(size: int, parts: int) -> list[tuple[int, int]]:
        return [(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]

    rows, cols = edges(x.shape[2], output_size[0]), edges(x.shape[3], output_size[1])
    total = torch.stack(
        [
            torch.stack([a[:, :, top:bottom, left:right].sum((2, 3)) for left, right in cols], -1)
            for top, bottom in rows
        ],
        -2,
    )
    high, wide = (
        torch.cat([x.new_full((1,), end - start, dtype=torch.float32) for start, end in places])
        for places in (rows, cols)
    )
    count = high.unsqueeze(-1) * wide
    return _mean(total, count, scale, out_scale, out_zero)


def _mean_of_rows(values: Tensor) -> Tensor:
    """Float64 means `[rows, 1]`: 16 sums, sum i of the elements i, i + 16, .., then of these sums by halves."""
    sums = values.new_zeros((values.shape[0], 16))
    for part in values.split(16, 1):
        sums[:, : part.shape[1]] += part
    for half in (8, 4, 2, 1):
        sums = sums[:, :half] + sums[:, half:]
    return sums / values.shape[1]


def layer_norm_static(
    x: Tensor, scale: Tensor | None, zero: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    eps: float, features: int, out_scale: Tensor, out_zero: Tensor,
) -> Tensor:  # fmt: skip
    """Layer norm over the last `features` elements, of floats or of codes under `scale`, `zero`; its codes.

    In float64 up to `(x - mean) / sqrt(variance + eps)`, which is rounded to float32. A row with NaN or infinity becomes
    `out_zero`.
    """
    v = x if scale is None else decode(x, scale, zero)  # type: ignore[arg-type]
    rows = v.double().reshape(-1, features)
    centred = rows - _mean_of_rows(rows)
    normalized = (centred * (1 / (_mean_of_rows(centred * centred) + eps).sqrt())).float()
    w = torch.ones_like(normalized) if weight is None else weight.float().reshape(-1)
    b = torch.zeros_like(normalized) if bias is None else bias.float().reshape(-1)
    return encode(fma(normalized, w, b), out_scale, out_zero).reshape(x.shape)


def affine_static(
    x: Tensor, scale: Tensor, zero: Tensor, mul: Tensor, add: Tensor, lo: float | None, hi: float | None,
    out_scale: Tensor | None, out_zero: Tensor | None, dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """`clamp(x * mul + add)` by channel (dimension 1) of codes: a BatchNorm that stands alone."""
    shape = (-1, *[1] * (x.dim() - 2))
    v = fma(decode(x, scale, zero), mul.reshape(shape), add.reshape(shape)).clamp(*ends(lo, hi))
    return v.to(dtype) if out_scale is None else encode(v, out_scale, out_zero)  # type: ignore[arg-type]


def lookup_static(x: Tensor, table: Tensor) -> Tensor:
    """`table[q + 128]` of each code: any function of one variable, int8 `[256]`."""
    return table[x.long() + 128]
