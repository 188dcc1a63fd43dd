"""Requantization without floats: an int32 bias, and an int32 multiplier and a shift a channel.

What hardware without floating point computes (Jacob et al. 2017, <https://arxiv.org/abs/1712.05877>, section 2.2): of exact
sums of `(a - z_a)(q - z_w)` the codes `clamp(round((sum + bias) * multiplier / 2**shift) + zero, lo, hi)`, where

    bias = round(b / (s_x * s_w))        multiplier / 2**shift = s_x * s_w / s_out
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .. import _static_ops
from ..flow import Codes, QParams
from . import storage

Requantization = Literal["fixed"] | None
LONGEST = 33_025
"""Products of one sum that fit int32 whatever the zero points."""
_KNOWN = "_fixed_points"
_MOST = 2.0**31 - 1
_UNKNOWN = "requantization: expected a model that was called before it is compiled or traced"


class FixedPoint(NamedTuple):
    """For one scale of the input and one of the output; of each channel, `[n]`."""

    unit: Tensor
    """s_x * s_w, float64."""
    multiplier: Tensor
    """int32."""
    shift: Tensor
    """int32, 1 to 62."""

    @classmethod
    def of(cls, weight_scale: Tensor, scale: Tensor, out_scale: Tensor) -> "FixedPoint":
        """From float32 scales: of the weight `[n]`, of input and output `[1]`."""
        unit = weight_scale.double() * scale.double()
        half, exponent = torch.frexp(unit / out_scale.double())  # half in [0.5, 1)
        multiplier, shift = (half * 2.0**31).round(), 31 - exponent
        even = multiplier == 2.0**31
        multiplier, shift = torch.where(even, 2.0**30, multiplier), torch.where(even, shift - 1, shift)
        few = (shift - 62).clamp(min=0)  # a factor so small that its last bits are beyond the largest shift
        multiplier, shift = (multiplier / 2.0**few).round(), shift - few
        multiplier = torch.where(shift < 1, _MOST, multiplier)
        return cls(unit, multiplier.int(), shift.clamp(min=1).int())

    def whole(self, bias: Tensor | None) -> Tensor | None:
        """A bias, floats `[n]`, in int32."""
        return None if bias is None else (bias.double() / self.unit).round().clamp(-_MOST, _MOST).int()


def resolve_requantization(given: Any) -> Requantization:
    """Raises ValueError for what is neither None nor "fixed"."""
    if given not in (None, "fixed"):
        raise ValueError(f"requantization: expected None or 'fixed', got {given!r}")
    return given  # type: ignore[no-any-return]


class FixedPointOutput(nn.Module):
    """Mixin of layers with the option `requantization`: "fixed" finishes int8 outputs in integers, None by float32 scales.

    It concerns codes on the CPU, of weights with one scale a channel. A sum that the layer takes along, and what leaves int8,
    is computed by float32 scales in any case.
    """

    requantization: Requantization = None

    def options(self) -> dict[str, Any]:
        """As `PackedWeight.options`; what files never said unless it was asked for is not in them."""
        options: dict[str, Any] = super().options()  # type: ignore[misc]
        return {k: v for k, v in options.items() if k != "requantization" or v is not None}

    def may_be_fixed(self, addend: Codes | None, to: QParams | None) -> bool:
        """Whether an output is computed so, where the option asks for it."""
        if to is None or addend is not None:
            return False
        layer: Any = self
        integers = layer.scheme.per_channel and layer.scheme.zero_point_dtype == "uint8"
        return integers and to[0].is_cpu and layer.weight_shape[1] <= LONGEST

    def fixed_product(
        self, x: Codes, images: Tensor, geometry: tuple[Any, ...], lo: float, hi: float, to: QParams
    ) -> Tensor:
        """Codes `[N, channels, H, W]` of `images` (x's codes as `[N, C, H, W]`), clamped to [lo, hi], under `to`.

        `geometry`: the arguments of `conv_fixed_static` from `kernel` to `output_padding`.
        """
        layer: Any = self
        scale, zero = to
        fixed, n = self._fixed_point(x.scale, scale), layer.weight_shape[0]
        bias = fixed.whole(layer.constant_bias())
        factors = fixed.multiplier, fixed.shift, zero, -127, 127
        out = _static_ops.conv_fixed_static(images, x.zero, layer.panels(), bias, n, *geometry, *factors)
        if (lo, hi) == (-math.inf, math.inf):
            return out  # type: ignore[no-any-return]
        least, most = (
            ((scale.new_tensor([end]) / scale).round() + zero).clamp(-127, 127) for end in (lo, hi)
        )
        return out.clamp(least.to(torch.int8), most.to(torch.int8))  # type: ignore[no-any-return]

    def _fixed_point(self, scale: Tensor, out_scale: Tensor) -> FixedPoint:
        """Computed once for a frozen layer, as long as the weight and the scales are the same."""
        layer: Any = self
        known = self.__dict__.get(_KNOWN)
        if torch.compiler.is_compiling():
            if known is None:
                raise RuntimeError(_UNKNOWN)
            return known[2]  # type: ignore[no-any-return]
        if not layer.frozen:
            return FixedPoint.of(layer.matrix().scale[:, 0], scale, out_scale)
        of = layer.panels(), scale, out_scale
        versions = list(map(storage.version, of))
        if (
            known is None
            or known[1] != versions
            or any(a is not b for a, b in zip(of, known[0], strict=True))
        ):
            if torch.jit.is_tracing():  # which would record how they are found, and get it wrong
                raise RuntimeError(_UNKNOWN)
            made = FixedPoint.of(layer.canonical().scale[:, 0], scale, out_scale)
            known = self.__dict__[_KNOWN] = of, versions, made
        return known[2]  # type: ignore[no-any-return]

    def calibrate(self, name: str, lo: float, hi: float, symmetric: bool = False) -> None:
        """See `StaticInput`; what was computed of the scales before is forgotten."""
        self.__dict__.pop(_KNOWN, None)
        super().calibrate(name, lo, hi, symmetric)  # type: ignore[misc]

    def _load_from_state_dict(self, *args: Any) -> None:
        self.__dict__.pop(_KNOWN, None)
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[misc]
        return {name: value for name, value in state.items() if name != _KNOWN}
