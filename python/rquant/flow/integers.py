"""Deployed arithmetic: int8 codes and the ops on them."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .. import _static_ops as ops
from .place import Place, QParams, StaticLayer


class Codes(NamedTuple):
    """int8 codes of a tensor: `scale * (codes - zero)`.

    `finite`: bool, one a sample (index of the first dimension): False where NaN or infinity went in, so that NaN comes out.
    `place`: whose scale and zero point they are.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    finite: Tensor
    place: Place | None

    def lies_at(self, place: Place) -> bool:
        """Whether they are under the scale and zero point of `place`."""
        own = self.place
        if own is None or own is place:
            return own is not None
        key = own.key
        return key is not None and key == place.key


def _of(place: Place) -> QParams:
    qparams = place.qparams
    assert qparams is not None, "who asks for codes looked first"
    return qparams


def _both(a: Tensor, b: Tensor) -> Tensor:
    return a if a is b else a & b


def _finite(x: Codes, out: Tensor) -> Tensor:
    """Of codes that x's became: its own, or one for all where samples are others."""
    return x.finite if out.shape[:1] == x.finite.shape else _all(x)


def _all(x: Codes) -> Tensor:
    return x.finite.all().reshape(1)


class Integers:
    """Each method makes `Codes` of `Codes`; `Floats` has the same ones on rounded floats."""

    has_gradients = False

    def knows(self, place: Place) -> bool:
        """Whether values can be rounded there."""
        return place.qparams is not None

    def enter(self, value: Tensor, place: Place) -> Codes:
        """Floats of any shape as codes."""
        scale, zero = _of(place)
        if value.dim() == 4 and value.is_cpu:
            codes, finite = ops.quantize_images_static(value, scale, zero)
        else:
            if value.dim() == 4:
                value = value.contiguous(memory_format=torch.channels_last)
            codes, finite = ops.quantize_static(value, scale, zero)
        return Codes(codes, scale, zero, finite, place)

    def leave(self, x: Codes, dtype: torch.dtype) -> Tensor:
        """Codes as floats."""
        return self._said(ops.dequantize_static(x.codes, x.scale, x.zero, dtype), x.finite)

    def _said(self, value: Tensor, finite: Tensor) -> Tensor:
        shape = (-1, *[1] * (value.dim() - 1))[: value.dim()]
        return torch.where(finite.reshape(shape), value, torch.nan) if finite.numel() > 0 else value

    def product(
        self, layer: StaticLayer, x: Codes, addend: Codes | None, lo: float, hi: float, to: Place
    ) -> Codes:
        """`clamp(layer(x) + addend, lo, hi)` as codes."""
        qparams = _of(to)
        out = layer.product(x, addend, lo, hi, qparams, torch.float32)
        finite = x.finite if addend is None else _both(x.finite, addend.finite)
        return Codes(out, *qparams, finite, to)

    def float_product(
        self, layer: StaticLayer, x: Codes, addend: Codes | None, lo: float, hi: float, dtype: torch.dtype
    ) -> Tensor:
        """The same as floats."""
        out = layer.product(x, addend, lo, hi, None, dtype)
        return self._said(out, x.finite if addend is None else _both(x.finite, addend.finite))

    def again(self, x: Codes, to: Place, lo: float = -math.inf, hi: float = math.inf) -> Codes:
        """Under other parameters, clamped."""
        if lo == -math.inf and hi == math.inf and x.lies_at(to):
            return x
        scale, zero = _of(to)
        return Codes(
            ops.requantize_static(x.codes, x.scale, x.zero, *ops.finite_ends(lo, hi), scale, zero),
            scale, zero, x.finite, to,
        )  # fmt: skip

    def add(self, a: Codes, b: Codes, lo: float, hi: float, to: Place) -> Codes:
        """`clamp(a + b)`."""
        scale, zero = _of(to)
        out = ops.add_static(
            a.codes, a.scale, a.zero, b.codes, b.scale, b.zero, *ops.finite_ends(lo, hi), scale, zero
        )
        return Codes(out, scale, zero, _both(a.finite, b.finite), to)

    def as_one(self, place: Place) -> AbstractContextManager[bool]:
        """While parts are rounded that will be joined; gives whether the whole is to `enter` afterwards."""
        return nullcontext(False)

    def join(self, parts: Sequence[Codes], dim: int, to: Place) -> Codes:
        """`torch.cat`."""
        scale, zero = _of(to)
        codes, scales, zeros = ([part[i] for part in parts] for i in range(3))
        if all(part.lies_at(to) for part in parts):
            out = torch.cat(codes, dim)
        else:
            out = ops.concat_static(codes, scales, zeros, dim, scale, zero)
        if dim == 0:
            return Codes(out, scale, zero, torch.cat([p.finite.expand(p.codes.shape[0]) for p in parts]), to)
        finite = parts[0].finite
        for part in parts[1:]:
            finite = _both(finite, part.finite)
        return Codes(out, scale, zero, finite, to)

    def move(
        self, x: Codes, func: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any], stay: bool
    ) -> Codes:
        """What only moves elements: a view, a permutation, a slice. `stay`: see `value.Moved`."""
        out = func(x.codes, *args, **kwargs)
        return x._replace(codes=out, finite=_finite(x, out) if stay else _all(x))

    def pad(self, x: Codes, pad: Sequence[int]) -> Codes:
        """Zeros around."""
        key = None if x.place is None else x.place.key
        if isinstance(key, tuple):
            out = functional.pad(x.codes, list(pad), value=key[1])
        else:  # int8 wraps around, so that this is exact
            out = functional.pad(x.codes - x.zero, list(pad)) + x.zero
        return x._replace(codes=out, finite=_finite(x, out))

    def max_pool(self, x: Codes, *args: Any) -> Codes:
        """`max_pool_static`'s arguments."""
        return x._replace(codes=ops.max_pool_static(x.codes, *args))

    def average(self, x: Codes, args: Sequence[Any], to: Place) -> Codes:
        """`avg_pool_static`'s arguments, or `adaptive_avg_pool_static`'s one."""
        scale, zero = _of(to)
        op = ops.adaptive_avg_pool_static if len(args) == 1 else ops.avg_pool_static
        return Codes(op(x.codes, x.scale, x.zero, *args, scale, zero), scale, zero, x.finite, to)
