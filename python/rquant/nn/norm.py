"""Layer normalization with quantized output."""

import torch
from torch import Tensor, nn

from .. import _static_ops
from ..flow import Codes, QParams
from ..qtypes import QType, qint8
from .placing import apart
from .registry import register_module
from .static import plain
from .unpacked import Unpacked


@register_module(nn.LayerNorm)
class LayerNorm(Unpacked, nn.LayerNorm):
    """`nn.LayerNorm`, in float; once calibrated, the quantized layers after it get int8 codes instead of floats.

    Its input is not rounded: where the sum of a residual stream comes as floats it is normalized as it is. Takes and returns
    `[..., *normalized_shape]` in float32, float16 or bfloat16.
    """

    @classmethod
    def from_float(cls, norm: nn.LayerNorm, activations: QType | str | None = qint8) -> "LayerNorm":
        """A module with copies of the parameters. Raises TypeError for another module."""
        if not isinstance(norm, nn.LayerNorm):
            raise TypeError(f"norm: expected nn.LayerNorm, got {type(norm).__name__}")
        made = apart(cls.wrap(norm, activations))
        made.frozen = True
        return made

    def forward(self, input: Tensor) -> Tensor:
        """As torch's; a calibrated one gives an `Activation`."""
        return self.send(input) if self.flows() else super().forward(plain(input))  # type: ignore[return-value]

    def product(
        self, x: Codes, addend: Codes | None, lo: float, hi: float, to: QParams | None, dtype: torch.dtype
    ) -> Tensor:
        """See `flow.place.StaticLayer`; nothing is taken along, and `x` may be floats."""
        if to is None:
            floats = (
                x.codes if x.scale is None else _static_ops.dequantize_static(x.codes, x.scale, x.zero, dtype)
            )
            return self.float_product(floats.to(dtype))
        features = torch.Size(self.normalized_shape).numel()
        return _static_ops.layer_norm_static(
            x.codes.contiguous(), x.scale, x.zero, self.weight, self.bias, self.eps, features, *to
        )  # type: ignore[no-any-return]

    def float_product(self, x: Tensor) -> Tensor:
        """See `flow.place.StaticLayer`."""
        return nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
