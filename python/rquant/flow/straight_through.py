"""Deployed arithmetic that gradients pass: the values of `Integers`, the derivatives of `Floats`."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .floats import Floats
from .integers import Codes, Integers
from .place import Place, StaticLayer

_INTEGERS, _FLOATS = Integers(), Floats()


class _WithGradientOf(Function):
    @staticmethod
    def forward(value: Tensor, floats: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # torch.func asks for it
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, grad


def with_gradient_of(value: Tensor, floats: Tensor) -> Tensor:
    """`value`, and its gradient goes to `floats`, of the same shape, which nearly are it (straight-through)."""
    return _WithGradientOf.apply(value.detach(), floats)  # type: ignore[no-any-return]


class Traced(NamedTuple):
    """Codes, and the same values as floats that know what they came of."""

    integers: Codes
    floats: Tensor

    @property
    def codes(self) -> Tensor:
        """The int8 tensor."""
        return self.integers.codes


def _rounded(integers: Codes, floats: Tensor) -> Traced:
    """Floats were added up in another order, and lie beside the codes in some last bits: from here on they are the codes'."""
    return Traced(integers, with_gradient_of(_INTEGERS.leave(integers, floats.dtype), floats))


class StraightThrough:
    """Both, side by side: for layers that train no more where gradients pass them, to what comes before. See `Integers`."""

    has_gradients = True

    def knows(self, place: Place) -> bool:
        """Whether values can be rounded there."""
        return place.qparams is not None

    def enter(self, value: Tensor, place: Place) -> Traced:
        """Floats of any shape, rounded."""
        return Traced(_INTEGERS.enter(value.detach(), place), _FLOATS.enter(value, place))

    def leave(self, x: Traced, dtype: torch.dtype) -> Tensor:
        """The floats."""
        return x.floats.to(dtype)

    def float_product(
        self, layer: StaticLayer, x: Traced, addend: Traced | None, lo: float, hi: float, dtype: torch.dtype
    ) -> Tensor:
        """`clamp(layer(x) + addend, lo, hi)`."""
        added, floats = (None, None) if addend is None else addend
        exact = _INTEGERS.float_product(layer, x.integers, added, lo, hi, dtype)
        return with_gradient_of(exact, _FLOATS.float_product(layer, x.floats, floats, lo, hi, dtype))

    def product(
        self, layer: StaticLayer, x: Traced, addend: Traced | None, lo: float, hi: float, to: Place
    ) -> Traced:
        """The same, rounded."""
        added, floats = (None, None) if addend is None else addend
        codes = _INTEGERS.product(layer, x.integers, added, lo, hi, to)
        return _rounded(codes, _FLOATS.product(layer, x.floats, floats, lo, hi, to))

    def again(self, x: Traced, to: Place, lo: float = -math.inf, hi: float = math.inf) -> Traced:
        """Under other parameters, clamped."""
        codes = _INTEGERS.again(x.integers, to, lo, hi)
        return x if codes is x.integers else _rounded(codes, _FLOATS.again(x.floats, to, lo, hi))

    def add(self, a: Traced, b: Traced, lo: float, hi: float, to: Place) -> Traced:
        """`clamp(a + b)`."""
        codes = _INTEGERS.add(a.integers, b.integers, lo, hi, to)
        return _rounded(codes, _FLOATS.add(a.floats, b.floats, lo, hi, to))

    def as_one(self, place: Place) -> AbstractContextManager[bool]:
        """Nothing follows what is frozen."""
        return _INTEGERS.as_one(place)

    def join(self, parts: Sequence[Traced], dim: int, to: Place) -> Traced:
        """`torch.cat`."""
        codes = _INTEGERS.join([part.integers for part in parts], dim, to)
        return _rounded(codes, _FLOATS.join([part.floats for part in parts], dim, to))

    def move(
        self, x: Traced, func: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any], stay: bool
    ) -> Traced:
        """What only moves elements."""
        rest = func, args, kwargs, stay
        return Traced(_INTEGERS.move(x.integers, *rest), _FLOATS.move(x.floats, *rest))

    def pad(self, x: Traced, pad: Sequence[int]) -> Traced:
        """Zeros around."""
        return Traced(_INTEGERS.pad(x.integers, pad), _FLOATS.pad(x.floats, pad))

    def max_pool(self, x: Traced, *args: Any) -> Traced:
        """`max_pool_static`'s arguments."""
        return Traced(_INTEGERS.max_pool(x.integers, *args), _FLOATS.max_pool(x.floats, *args))

    def average(self, x: Traced, args: Sequence[Any], to: Place) -> Traced:
        """`avg_pool_static`'s arguments, or `adaptive_avg_pool_static`'s one."""
        return _rounded(_INTEGERS.average(x.integers, args, to), _FLOATS.average(x.floats, args, to))
