"""BatchNorm that no layer before it can take in: on int8 codes, with the ReLU after it."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import _static_ops
from ..flow import Activation, Codes, QParams
from .registry import register_module
from .static import epilogue, plain
from .unpacked import Unpacked


class _BatchNorm(Unpacked):
    """What the dimensions share. In eval mode a calibrated one reads and returns codes, a multiplication and an addition each.

    In training, and on float tensors, it is torch's.
    """

    num_features: int
    running_mean: Tensor | None
    running_var: Tensor | None

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """One that uses the batch's own statistics stays as it is."""
        return None if module.running_mean is not None else "it uses the batch's own statistics"

    def forward(self, input: Tensor) -> Tensor:
        """As torch's; of an `Activation` a calibrated one makes another."""
        if self.training or not isinstance(input, Activation) or not self.flows():
            return super().forward(plain(input))  # type: ignore[misc, no-any-return]
        made = self.receive(input)
        made.value.node.takes_addend = False
        return made  # type: ignore[no-any-return]

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Float32 `[channels]` each: `y = x * mul + add`."""
        norm: Any = self
        factor = torch.rsqrt(norm.running_var.float() + norm.eps)
        factor = factor if norm.weight is None else factor * norm.weight.float()
        shift = -norm.running_mean.float() * factor
        return factor, shift if norm.bias is None else shift + norm.bias.float()

    def product(
        self, x: Codes, addend: Codes | None, lo: float, hi: float, to: QParams | None, dtype: torch.dtype
    ) -> Tensor:
        """See `flow.place.StaticLayer`; nothing is added."""
        *_, lo, hi, scale, zero, dtype = epilogue(addend, lo, hi, to, dtype)
        return _static_ops.affine_static(  # type: ignore[no-any-return]
            x.codes, x.scale, x.zero, *self._affine(), lo, hi, scale, zero, dtype
        )

    def float_product(self, x: Tensor) -> Tensor:
        """See `flow.place.StaticLayer`."""
        norm: Any = self
        arguments = norm.running_mean, norm.running_var, norm.weight, norm.bias
        return nn.functional.batch_norm(x, *arguments, training=False, eps=norm.eps)


@register_module(nn.BatchNorm1d, by_default=False)
class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d`, of `[N, C]` or `[N, C, L]`, between quantized layers."""


@register_module(nn.BatchNorm2d, by_default=False)
class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d`, of `[N, C, H, W]`, between quantized layers."""
