"""Gradients around the ops: forward runs the deployed op itself, backward is the straight-through estimator.

The gradient of rounding is taken as 1 inside the range and 0 where an element was clipped
(Bengio et al. 2013, <https://arxiv.org/abs/1308.3432>).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.library import Library, register_autograd, register_fake

from . import _ops
from .qtypes import QType, qtype_of_kind

_library = Library("rquant", "FRAGMENT")
SchemeArguments = tuple[int, int, bool, str]
"""`(kind, group_size, symmetric, optimizer)`, as the ops of unfrozen layers take them."""


def _to_bias(grad: Tensor, needed: bool) -> Tensor | None:
    return grad.reshape(-1, grad.shape[-1]).sum(0) if needed else None


def _differentiable(op: Any, kernel: Callable[..., Any], keep: Callable[..., Any], backward: Any) -> Any:
    """What computes as `kernel`, an op's, and has a gradient: `keep(ctx, inputs, output)` saves what `backward(ctx, grad)` needs.

    Called, it is a Function, which costs the least; in a transform of functorch one of the kind that this needs; and traced,
    compiled or exported an op like `op`, so that the program has the gradient too.
    """
    name, arguments = f"{op._opname}_differentiable", str(op._schema).partition("(")[2]
    _library.define(f"{name}({arguments.replace('=None', '')}", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    register_fake(f"rquant::{name}", op, lib=_library)
    register_autograd(f"rquant::{name}", backward, setup_context=keep, lib=_library)
    differentiable = getattr(torch.ops.rquant, name).default

    def forward(ctx: Any, *arguments: Any) -> Tensor:
        keep(ctx, arguments, output := kernel(*arguments))
        return output  # type: ignore[no-any-return]

    def function(**parts: Any) -> Any:
        return type(name, (Function,), {key: staticmethod(part) for key, part in parts.items()})

    eager = function(forward=forward, backward=backward)
    transformed = function(forward=kernel, setup_context=keep, backward=backward)
    transformed.generate_vmap_rule = True

    def call(*arguments: Any) -> Tensor:
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            return differentiable(*arguments)  # type: ignore[no-any-return]
        # with a `setup_context` a Function costs four times as much
        return (transformed if torch._C._are_functorch_transforms_active() else eager).apply(*arguments)  # type: ignore[no-any-return]

    return call


def _keep_panels(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, panels, _, k, n, _, _ = inputs
    ctx.save_for_backward(panels)
    ctx.sizes = n, k


def _from_panels(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (panels,) = ctx.saved_tensors
    to_x = grad @ _ops.dequantize(panels, *ctx.sizes, grad.dtype) if ctx.needs_input_grad[0] else None
    return to_x, None, _to_bias(grad, ctx.needs_input_grad[2]), None, None, None, None


def _keep_canonical(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, codes, scale, zero, _, *sizes, _, _ = inputs
    ctx.save_for_backward(codes, scale, zero)
    ctx.sizes = sizes


def _from_canonical(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    to_x = None
    if ctx.needs_input_grad[0]:
        to_x = grad @ _ops.dequantize_canonical(*ctx.saved_tensors, *ctx.sizes, grad.dtype)
    return to_x, None, None, None, _to_bias(grad, ctx.needs_input_grad[4]), *(None,) * 5


# Gradients to x and bias. The weight is integers and has none.
linear = _differentiable(_ops.linear, _ops.checked_linear, _keep_panels, _from_panels)
linear_canonical = _differentiable(
    _ops.linear_canonical, _ops.linear_canonical, _keep_canonical, _from_canonical
)


class UnfrozenLinear(Function):
    """`linear_unfrozen`: gradients to x, to the float weight (0 where it was clipped) and to bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scheme: SchemeArguments, integer: bool
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


def with_columns(weight: Tensor, columns: list[int] | None, kept: Tensor | None) -> Tensor:
    """`weight` `[n, k]`, in `columns` what was kept of it in float."""
    if columns is None or kept is None:
        return weight
    at = torch.tensor(columns, dtype=torch.int64, device=weight.device)
    return weight.index_copy(1, at, kept.to(weight.dtype))


def _keep_panels_outliers(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, panels, _, k, n, _, columns, kept = inputs
    ctx.save_for_backward(panels, kept)
    ctx.sizes, ctx.columns = (n, k), columns


def _from_panels_outliers(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    to_x = None
    if ctx.needs_input_grad[0]:
        panels, kept = ctx.saved_tensors
        to_x = grad @ with_columns(_ops.dequantize(panels, *ctx.sizes, grad.dtype), ctx.columns, kept)
    return to_x, None, _to_bias(grad, ctx.needs_input_grad[2]), *(None,) * 5


def _keep_canonical_outliers(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, codes, scale, zero, _, *sizes, _, columns, kept = inputs
    ctx.save_for_backward(codes, scale, zero, kept)
    ctx.sizes, ctx.columns = sizes, columns


def _from_canonical_outliers(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    to_x = None
    if ctx.needs_input_grad[0]:
        *weight, kept = ctx.saved_tensors
        weight = _ops.dequantize_canonical(*weight, *ctx.sizes, grad.dtype)
        to_x = grad @ with_columns(weight, ctx.columns, kept)
    return to_x, None, None, None, _to_bias(grad, ctx.needs_input_grad[4]), *(None,) * 6


# Gradients to x and bias, as if all had been multiplied in float.
linear_outliers = _differentiable(
    _ops.linear_outliers, _ops.linear_outliers, _keep_panels_outliers, _from_panels_outliers
)
linear_outliers_canonical = _differentiable(
    _ops.linear_outliers_canonical,
    _ops.linear_outliers_canonical,
    _keep_canonical_outliers,
    _from_canonical_outliers,
)


class UnfrozenOutlierLinear(Function):
    """`linear_outliers_unfrozen`: gradients as `UnfrozenLinear`'s; those of given columns are not rounded away."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scheme: SchemeArguments,
        threshold: float | None,
        columns: list[int] | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.scheme, ctx.outliers = scheme, (threshold, columns)
        return _ops.linear_outliers_unfrozen(x, weight, bias, *scheme, threshold, columns)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        columns = ctx.outliers[1]
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            kept = None if columns is None else weight[:, columns]
            to_x = grad @ with_columns(_ops.fake_quantize(weight, *ctx.scheme), columns, kept).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            rows = _ops.round_rows(x.reshape(-1, x.shape[-1]), *ctx.outliers).to(grad.dtype)
            to_weight = (grad.reshape(-1, grad.shape[-1]).T @ rows).to(weight.dtype)
            inside = _ops.inside_range(weight, *ctx.scheme)
            kept = None if columns is None else torch.ones_like(inside[:, columns])
            to_weight = to_weight * with_columns(inside, columns, kept)
        return to_x, to_weight, _to_bias(grad, ctx.needs_input_grad[2]), None, None, None


class _FakeQuantize(Function):
    """The weight as its codes read back, with the straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scheme: SchemeArguments) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.scheme = scheme
        return _ops.fake_quantize(weight, *scheme)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (weight,) = ctx.saved_tensors
        return grad * _ops.inside_range(weight, *ctx.scheme), None


class _RoundRows(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, qtype: QType) -> Tensor:
        wide = x.float()
        most = wide.abs().amax(-1, keepdim=True)
        scale = torch.where(most == 0, 1.0, (most / qtype.largest).clamp(torch.finfo(torch.float32).tiny))
        q = wide / scale
        if qtype.is_floating_point:
            q = q.clamp(-qtype.largest, qtype.largest).to(getattr(torch, qtype.name[1:])).float()
        else:
            q = q.round().clamp(-qtype.largest, qtype.largest)
        return (q * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad, None


def round_rows(x: Tensor, qtype: QType) -> Tensor:
    """`x` `[..., k]`, k >= 1, as it reads back from codes of `qtype` under one scale a row, `max|x| / qtype.largest`; of x's dtype.

    A row with NaN or infinity holds NaN afterwards. The gradient is passed on as it is.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _RoundRows.apply(x, qtype)  # type: ignore[no-any-return]
    return _RoundRows.forward(None, x, qtype)


def fake_quantize(weight: Tensor, scheme: SchemeArguments) -> Tensor:
    """`weight` as its codes read back, with the straight-through gradient if one is wanted."""
    if (qtype := qtype_of_kind(scheme[0])).is_cast:
        return weight.to(getattr(torch, qtype.name[1:])).to(weight.dtype)
    if torch.is_grad_enabled() and weight.requires_grad:
        return _FakeQuantize.apply(weight, scheme)  # type: ignore[no-any-return]
    return _ops.fake_quantize(weight, *scheme)  # type: ignore[no-any-return]
