"""The same arithmetic in float, for training and for watching: values are rounded where deployment rounds them."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import recording
from .place import Place, StaticLayer


class Floats:
    """What `Integers` computes, on floats with gradients; with a recorder nothing is rounded, and it is told the values."""

    has_gradients = True

    def knows(self, place: Place) -> bool:
        """Whether values can be rounded there; a recorder wants to see them all."""
        return recording.current() is not None or place.qparams is not None

    def _round(self, value: Tensor, place: Place) -> Tensor:
        recorder = recording.current()
        if recorder is None:
            return place.layer.simulate(place.name, value)
        if place != recorder.joining:
            (recorder.input if place.name == "input" else recorder.output)(place.layer, value.detach())
        return value

    def enter(self, value: Tensor, place: Place) -> Tensor:
        """Rounded."""
        return self._round(value, place)

    def leave(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """They are floats."""
        return x.to(dtype)

    def float_product(
        self, layer: StaticLayer, x: Tensor, addend: Tensor | None, lo: float, hi: float, dtype: torch.dtype
    ) -> Tensor:
        """`clamp(layer(x) + addend, lo, hi)`."""
        out = layer.float_product(x)
        return _clamped(out if addend is None else out + addend, lo, hi)

    def product(
        self, layer: StaticLayer, x: Tensor, addend: Tensor | None, lo: float, hi: float, to: Place
    ) -> Tensor:
        """The same, rounded."""
        return self._round(self.float_product(layer, x, addend, lo, hi, x.dtype), to)

    def again(self, x: Tensor, to: Place, lo: float = -math.inf, hi: float = math.inf) -> Tensor:
        """Clamped, and rounded anew."""
        return self._round(_clamped(x, lo, hi), to)

    def add(self, a: Tensor, b: Tensor, lo: float, hi: float, to: Place) -> Tensor:
        """`clamp(a + b)`."""
        return self._round(_clamped(a + b, lo, hi), to)

    def as_one(self, place: Place) -> AbstractContextManager[bool]:
        """Parts are one batch to who follows: a recorder is told of the whole, a layer's range hears the parts together."""
        recorder = recording.current()
        return place.layer.as_one(place.name) if recorder is None else recorder.as_one(place)

    def join(self, parts: Sequence[Tensor], dim: int, to: Place) -> Tensor:
        """`torch.cat`; the parts were rounded for `to`."""
        return torch.cat(list(parts), dim)

    def move(
        self, x: Tensor, func: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any], stay: bool
    ) -> Tensor:
        """What only moves elements."""
        return func(x, *args, **kwargs)

    def pad(self, x: Tensor, pad: Sequence[int]) -> Tensor:
        """Zeros around."""
        return functional.pad(x, list(pad))

    def max_pool(self, x: Tensor, *args: Any) -> Tensor:
        """`max_pool2d`'s arguments."""
        return functional.max_pool2d(x, *args)

    def average(self, x: Tensor, args: Sequence[Any], to: Place) -> Tensor:
        """`avg_pool2d`'s arguments, or `adaptive_avg_pool2d`'s one."""
        pool = functional.adaptive_avg_pool2d if len(args) == 1 else functional.avg_pool2d
        return self._round(pool(x, *args), to)


def _clamped(x: Tensor, lo: float, hi: float) -> Tensor:
    if (lo, hi) == (-math.inf, math.inf):
        return x
    return functional.relu(x) if (lo, hi) == (0.0, math.inf) else x.clamp(lo, hi)
