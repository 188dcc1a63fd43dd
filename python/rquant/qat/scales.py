"""Scales that training learns: of a weight, and of a layer's input.

The parameter is the logarithm of the scale, so the scale stays positive whatever the optimizer does. What reaches it is
LSQ's gradient of the scale, divided by the scale: then a step of plain gradient descent changes the scale by as much as in
the paper, and one of Adam by the part of itself that its learning rate says, be the scale 1 or 0.001 (Jain et al. 2019
learn logarithms too, <https://arxiv.org/abs/1903.08066>).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from .. import optimize
from .._fake_quantize import fake_quantize_weight, stored_scale
from .._native import QMatrix
from ..scheme import PER_CHANNEL, Optimizer, Scheme, ZeroPointDtype


def _exp(log_scale: Tensor) -> Tensor:
    """Never 0, denormal or infinite."""
    return log_scale.clamp(-87.0, 88.0).exp()


class _Exp(Function):
    @staticmethod
    def forward(ctx: Any, log_scale: Tensor) -> Tensor:
        scale = _exp(log_scale)
        ctx.save_for_backward(scale)
        return scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (scale,) = ctx.saved_tensors
        return grad / scale


class Float32(nn.Module):
    """Whose tensors keep their dtypes where a model is cast, as by `.half()`: scales are float32."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32":
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)
        return self


class LearnedScale(Float32):
    """A positive scale with a gradient: float32 of any shape."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(scale.detach().float().log())

    @property
    def scale(self) -> Tensor:
        """S; its gradient reaches `log_scale` divided by S."""
        return _Exp.apply(self.log_scale) if torch.is_grad_enabled() else _exp(self.log_scale)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """How many scales."""
        return f"{self.log_scale.numel()} scales"


class LearnedWeightScale(LearnedScale):
    """A weight's scales as an optimizer of `rquant.optimize`: what it encodes by is what training has come to.

    One scale for each that the scheme has, or, `per_tensor`, a single one. Scales and zero points begin as `start` chooses
    them for `weight` `[n, k]`; zero points stay.
    """

    zero_point_dtype: ZeroPointDtype = "uint8"
    zero_point: Tensor | None

    def __init__(self, weight: Tensor, scheme: Scheme, per_tensor: bool, start: str | Optimizer) -> None:
        (n, k), device = weight.shape, weight.device
        weight = weight.detach().float().cpu().contiguous()
        scheme = replace(scheme, optimizer=start, zero_point_dtype=self.zero_point_dtype)
        if per_tensor:
            q = optimize.choose(weight.reshape(1, -1), replace(scheme, group_size=PER_CHANNEL))
        else:
            q = optimize.choose(weight, scheme)
        super().__init__(q.scale.to(device))
        self.groups, self.group_size = (n, scheme.groups(k)), scheme.group_size
        zero = None if q.zero_point is None else q.zero_point.expand(self.groups).contiguous()
        self.register_buffer("zero_point", None if zero is None else zero.to(device))

    def stored(self) -> Tensor:
        """The scales `[n, groups]` as a file has them."""
        with torch.no_grad():
            return stored_scale(self.scale, self.groups, self.group_size)

    def forward(self, weight: Tensor, scheme: Scheme) -> QMatrix:
        """`weight` `[n, k]` in the scheme's canonical form, by the scales as they are."""
        stored, zero = self.stored(), self.zero_point
        zero = None if zero is None else zero.to(weight.device)
        return optimize.encode(weight, stored.to(weight.device), zero, scheme)

    def fake_quantize(self, weight: Tensor, scheme: Scheme) -> Tensor:
        """What `forward`'s codes read back as, with gradients to the weight and to `log_scale`."""
        return fake_quantize_weight(weight, self.scale, self.zero_point, scheme.kind, scheme.group_size)
