"""What quantized modules without a packed weight share: only what they return changes, and only once calibrated."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from ..flow import Activation, Codes, Traced, recording
from ..flow.value import Product, Value
from ..qtypes import ACTIVATIONS, QType, qtype_of
from .static import FLOATS, INTEGERS, STRAIGHT_THROUGH, StaticInput, plain

Self = TypeVar("Self", bound="Unpacked")


class Unpacked(StaticInput):
    """Mixin before a torch module whose parameters stay float: it reads floats, and returns int8 codes for the layer after it.

    Until a `Calibration` has shown that quantized layers read its output, it is the float module. A subclass writes
    `product`, `float_product` and `forward`, which asks `flows()` and returns `send(input)` then.
    """

    OPTIONS = ("activations", *StaticInput.OPTIONS)
    activations: QType | None
    frozen = False
    """Whether the layers around it are: what it returns in training is rounded as deployed then."""

    @classmethod
    def wrap(
        cls: type[Self],
        module: nn.Module,
        activations: QType | str | None = None,
        flow: bool | None = None,
        keep: int | None = None,
        calibrated: Sequence[str] | None = None,
    ) -> Self:
        """A module around the very Parameters and buffers of `module`."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        torchs = nn.Module().__dict__.keys() - {"_parameters", "_buffers", "_modules", "training"}
        made.__dict__.update({name: value for name, value in module.__dict__.items() if name not in torchs})
        for name in ("_parameters", "_buffers", "_modules"):
            made.__dict__[name] = dict(module.__dict__[name])
        made._non_persistent_buffers_set.update(module._non_persistent_buffers_set)
        made.activations = None if activations is None else qtype_of(activations, "activations", ACTIVATIONS)
        made.begin_static()
        made.expect(flow, keep, calibrated)
        return made

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Why this `module`, of a type that the class is registered for, stays as it is; None if it need not."""
        return None

    def options(self) -> dict[str, Any]:
        """What `wrap` was given, in JSON types, without what is not calibrated."""
        values = {name: getattr(self, name) for name in self.OPTIONS}
        return {
            name: value.name if isinstance(value, QType) else value
            for name, value in values.items()
            if value is not None
        }

    def output_shape(self, shape: Sequence[int]) -> Sequence[int]:
        """See `flow.place.StaticLayer`: the same."""
        return shape

    def flows(self) -> bool:
        """Whether quantized layers read what it returns, or a calibration looks whether they do."""
        return self.activations is not None and (bool(self.flow) or recording.current() is not None)

    def send(self, x: Any) -> Activation:
        """What it returns for x, not computed yet."""
        arithmetic = FLOATS if recording.current() is not None else self.arithmetic(x)
        given = x.value.rounded if isinstance(x, Activation) else None
        if arithmetic is FLOATS:
            given = plain(x)
        elif arithmetic is INTEGERS:
            given = given if isinstance(given, Codes) else _floats(plain(x))
        elif not isinstance(given, Traced):
            floats = plain(x)
            given = Traced(given if isinstance(given, Codes) else _floats(floats.detach()), floats)
        value = Value(arithmetic, Product(self, given), x.shape, x.dtype)
        value.node.fuses = value.node.takes_addend = False
        return Activation(value)

    def arithmetic(self, x: Any) -> Any:
        """As `StaticInput.arithmetic`; its parameters may train, even among layers that are frozen."""
        grad = torch.is_grad_enabled()
        trains = grad and self.training and any(p.requires_grad for p in self.parameters())
        if isinstance(x, Activation):
            known = x.value.arithmetic
            return STRAIGHT_THROUGH if trains and known is INTEGERS else known
        if trains and not self.frozen:
            return FLOATS
        return STRAIGHT_THROUGH if trains or (grad and x.requires_grad) else INTEGERS

    def settle(self) -> None:
        """Called by `rquant.freeze`."""
        super().settle()
        self.frozen = True


def _floats(x: torch.Tensor) -> Codes:
    """Floats in the place of codes."""
    lo, hi = x.detach().flatten(1).aminmax(dim=1) if x.dim() > 1 else x.detach().reshape(-1, 1).aminmax(dim=1)
    return Codes(x, None, None, lo.isfinite() & hi.isfinite(), None)  # type: ignore[arg-type]
