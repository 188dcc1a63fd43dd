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

from ._backends import learned
from ._backends.static_reference import LARGEST
from ._ops import define
from ._static_ops import fake_quantize_static, inside_range_static

stored_scale = learned.stored

# Scales are stored as their values allow, which only runs inside of an op: traced, it is one.
_LEARNED = "Tensor weight, Tensor scale, Tensor? zero, int kind, int group_size"
define(
    "fake_quantize_learned",
    f"({_LEARNED}) -> Tensor",
    lambda weight, *_: torch.empty_like(weight, memory_format=torch.contiguous_format),
    on_cpu=learned.fake_quantize_learned,
    elsewhere=learned.fake_quantize_learned,
)
define(
    "fake_quantize_learned_backward",
    f"(Tensor grad, {_LEARNED}) -> (Tensor, Tensor)",
    lambda grad, weight, scale, *_: (torch.empty_like(grad), torch.empty_like(scale)),
    on_cpu=learned.fake_quantize_learned_backward,
    elsewhere=learned.fake_quantize_learned_backward,
)


class _Activations(Function):
    @staticmethod
    def forward(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return fake_quantize_static(x, scale, zero)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # torch.func asks for it
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, scale, zero = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return grad * inside_range_static(x, scale, zero), None, None
        inside, of_scale = learned.of_scale(x, scale, zero.float(), -LARGEST, LARGEST)
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
        ctx: Any, weight: Tensor, scale: Tensor, zero: Tensor | None, kind: int, group_size: int
    ) -> Tensor:
        ctx.save_for_backward(weight, scale, zero)
        ctx.arguments = kind, group_size
        return torch.ops.rquant.fake_quantize_learned(weight, scale, zero, kind, group_size)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        gradients = torch.ops.rquant.fake_quantize_learned_backward(grad, *ctx.saved_tensors, *ctx.arguments)
        return *gradients, None, None, None


def fake_quantize_weight(
    weight: Tensor, scale: Tensor, zero: Tensor | None, kind: int, group_size: int
) -> Tensor:
    """`weight` `[n, k]` as its codes of `kind` read back, under scales that may learn, with gradients to both.

    `scale`: float32, `[n, groups]`, `[n, 1]` or `[1, 1]`; rounded as it is stored in a file. `zero`: `[n, groups]`, as in a
    file, or None for a symmetric scheme. Raises ValueError for NaN or infinity in the weight.
    """
    return _Weight.apply(weight, scale, zero, kind, group_size)  # type: ignore[no-any-return]
