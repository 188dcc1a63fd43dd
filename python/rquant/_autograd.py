"""Gradients around the ops: forward runs the deployed op itself, backward is the straight-through estimator.

The gradient of rounding is taken as 1 inside the range and 0 where an element was clipped
(Bengio et al. 2013, <https://arxiv.org/abs/1308.3432>).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _ops


def _to_bias(grad: Tensor, needed: bool) -> Tensor | None:
    return grad.reshape(-1, grad.shape[-1]).sum(0) if needed else None


class PackedLinear(Function):
    """`linear` on panels: gradients to x and bias. The weight is integers and has none."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        panels: Tensor,
        bias: Tensor | None,
        k: int,
        n: int,
        integer: bool,
        scale: Tensor | None,
    ) -> Tensor:
        ctx.panels, ctx.sizes = panels, (n, k)
        return _ops.checked_linear(x, panels, bias, k, n, integer, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        to_x = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = grad @ _ops.dequantize(ctx.panels, *ctx.sizes, grad.dtype)
        to_bias = _to_bias(grad, ctx.needs_input_grad[2])
        return to_x, None, to_bias, None, None, None, None


class CanonicalLinear(Function):
    """`linear_canonical`, for devices that have no panels."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: tuple[Any, ...],
        bias: Tensor | None,
        integer: bool,
        scale_of_x: Tensor | None,
    ) -> Tensor:
        codes, scale, zero, k, bits, group = ctx.weight = weight
        return _ops.linear_canonical(x, codes, scale, zero, bias, k, bits, group, integer, scale_of_x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = grad @ _ops.dequantize_canonical(*ctx.weight, grad.dtype)
        return to_x, None, _to_bias(grad, ctx.needs_input_grad[2]), None, None


class UnfrozenLinear(Function):
    """`linear_unfrozen`: gradients to x, to the float weight (0 where it was clipped) and to bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scheme: tuple[int, int, bool], integer: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.scheme, ctx.integer = scheme, integer
        return _ops.linear_unfrozen(x, weight, bias, *scheme, integer)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = grad @ _ops.fake_quantize(weight, *ctx.scheme).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            rows = x.reshape(-1, x.shape[-1])
            if ctx.integer:
                q, scale = _ops.quantize_rows(rows)
                rows = (q * scale.unsqueeze(-1)).to(grad.dtype)
            to_weight = grad.reshape(-1, grad.shape[-1]).T @ rows
            to_weight = to_weight.to(weight.dtype) * _ops.inside_range(weight, *ctx.scheme)
        return to_x, to_weight, _to_bias(grad, ctx.needs_input_grad[2]), None, None


class _FakeQuantize(Function):
    """The weight as its codes read back, with the straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scheme: tuple[int, int, bool]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.scheme = scheme
        return _ops.fake_quantize(weight, *scheme)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (weight,) = ctx.saved_tensors
        return grad * _ops.inside_range(weight, *ctx.scheme), None


def fake_quantize(weight: Tensor, scheme: tuple[int, int, bool]) -> Tensor:
    """`weight` as its codes read back, with the straight-through gradient if one is wanted."""
    if torch.is_grad_enabled() and weight.requires_grad:
        return _FakeQuantize.apply(weight, scheme)  # type: ignore[no-any-return]
    return _ops.fake_quantize(weight, *scheme)  # type: ignore[no-any-return]
