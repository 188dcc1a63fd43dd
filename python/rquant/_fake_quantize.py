"""Fake quantization: a tensor as its codes read back, by the deployed rounding, with gradients for training.

The gradient of rounding is 1 inside the range and 0 where an element was clipped (Bengio et al. 2013,
<https://arxiv.org/abs/1308.3432>). A scale that wants a gradient gets that of LSQ (Esser et al. 2020,
<https://arxiv.org/abs/1902.08153>, equations 3 and 4): of `x̂ = S·(q - Z)` it is `q - Z - x/S` inside the range and `q - Z`
where x was clipped, summed over what shares the scale, times `1 / sqrt(n · qmax)`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _ops
from ._autograd import SchemeArguments
from ._backends import reference
from ._backends.static_reference import LARGEST
from ._static_ops import fake_quantize_static, inside_range_static


def _of_scale(x: Tensor, scale: Tensor, zero: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """Whether each code came without clipping (bool), and the derivative of `x̂` to its scale."""
    ratio = x.float() / scale
    steps = ratio.round() + zero
    inside = (steps >= lowest) & (steps <= highest)
    return inside, steps.clamp(lowest, highest) - zero - torch.where(inside, ratio, 0.0)


class _Activations(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, zero)
        return fake_quantize_static(x, scale, zero)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, scale, zero = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return grad * inside_range_static(x, scale, zero), None, None
        inside, of_scale = _of_scale(x, scale, zero.float(), -LARGEST, LARGEST)
        features = x[0].numel() if x.dim() > 1 else x.numel()
        total = (grad.float() * of_scale).sum().reshape(scale.shape)
        return grad * inside, total / math.sqrt(max(features, 1) * LARGEST), None


def fake_quantize_activations(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """x (floats of any shape) as its int8 codes under `scale` (float32 `[1]`) and `zero` (int8 `[1]`) read back; of x's dtype.

    `scale * (clip(round_half_even(x / scale) + zero, -127, 127) - zero)`. Gradients to x and to `scale`, whose n is the
    number of elements of one sample, `x[0]`.
    """
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        return _Activations.apply(x, scale, zero)  # type: ignore[no-any-return]
    return fake_quantize_static(x, scale, zero)


class _Weight(Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, stored: Tensor, zero: Tensor | None, arguments: SchemeArguments
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(weight, stored, zero)
        ctx.arguments, ctx.shape = arguments, scale.shape
        return _ops.fake_quantize(weight, *arguments)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        weight, stored, zero = ctx.saved_tensors
        kind, group_size, symmetric, _ = ctx.arguments
        n, k = weight.shape
        half = 1 << (kind - 1)
        s = reference.expand(stored.float(), k, group_size)
        z = reference.expand(reference.zeros_of(stored, zero, kind), k, group_size)
        inside, of_scale = _of_scale(weight, s, z, -half + symmetric, half - 1)
        to_scale = None
        if ctx.needs_input_grad[1]:
            size = max(k, 1) if group_size == -1 else group_size
            sums = torch.nn.functional.pad(grad.float() * of_scale, (0, -k % size)).unflatten(1, (-1, size))
            to_scale = sums.sum(-1).sum_to_size(ctx.shape)
            qmax = half - 1 if symmetric else 2 * half - 1
            to_scale = to_scale / math.sqrt(max(n * k // to_scale.numel(), 1) * qmax)
        return grad * inside, to_scale, None, None, None


def fake_quantize_weight(
    weight: Tensor, scale: Tensor, stored: Tensor, zero: Tensor | None, arguments: SchemeArguments
) -> Tensor:
    """`weight` `[n, k]` as its codes read back, under scales that may learn.

    `scale`: float32, to get the gradient: `[n, groups]`, `[n, 1]` or `[1, 1]`. `stored`: the same as they are stored,
    `[n, groups]`; `zero` the same shape, as in a file, or None. `arguments`: the scheme, whose optimizer encodes by them.
    """
    return _Weight.apply(weight, scale, stored, zero, arguments)  # type: ignore[no-any-return]
