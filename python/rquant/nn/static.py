"""Layers whose input, once calibrated, has one scale: they read int8 codes, and what they return may stay codes.

`rquant.flow` says how; here is what a layer keeps for it.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .._fake_quantize import fake_quantize_activations
from .._static_ops import finite_ends
from ..flow import Activation, Codes, Floats, Integers, Place, QParams, StraightThrough, recording
from ..flow.value import Product, Value
from . import storage

INTEGERS, FLOATS, STRAIGHT_THROUGH = Integers(), Floats(), StraightThrough()
NAMES = ("input", "output")
BUFFERS = tuple(f"{name}_{part}" for name in NAMES for part in ("scale", "zero_point"))
_PAIRS = {name: (f"{name}_range", f"{name}_scale", f"{name}_zero_point") for name in NAMES}
LAUNCHES, _KEYS = "_launches_done", "_keys"
"""Names under which a layer keeps what it found out; copies and pickles find it out again."""


class StaticInput(nn.Module):
    """Mixin of modules that may have `input_scale`, `input_zero_point` and `output_scale`, `output_zero_point`.

    Scales are float32 `[1]`, zero points int8 `[1]`: `x = scale * (q - zero_point)`, q in [-127, 127]. None where not
    calibrated. A subclass calls `begin_static` in its `__init__` and offers `output_shape`, `product` and `float_product`.
    """

    OPTIONS: tuple[str, ...] = ("flow", "keep", "calibrated")
    frozen: bool
    flow: bool | None
    """Whether what the layer returns may be an `Activation`: other quantized layers read it."""
    keep: int | None
    """Stage of its output that has several readers (see `flow.value.Value.stage`)."""

    def begin_static(self) -> None:
        """Start uncalibrated."""
        self.flow, self.keep = None, None
        for name in BUFFERS:
            self.register_buffer(name, None)

    def options(self) -> dict[str, Any]:
        """As `PackedWeight.options`, without what is not calibrated."""
        options: dict[str, Any] = super().options()  # type: ignore[misc]
        return {k: v for k, v in options.items() if k not in StaticInput.OPTIONS or v is not None}

    @property
    def calibrated(self) -> tuple[str, ...] | None:
        """Which of "input" and "output" have a scale."""
        return tuple(name for name in NAMES if self._buffers[f"{name}_scale"] is not None) or None

    def expect(self, flow: bool | None, keep: int | None, calibrated: Sequence[str] | None) -> None:
        """Make room for scales that are about to be loaded."""
        self.flow, self.keep = flow, keep
        for name in calibrated or ():
            self._buffers[f"{name}_scale"] = torch.ones(1)
            self._buffers[f"{name}_zero_point"] = torch.zeros(1, dtype=torch.int8)

    def calibrate(self, name: str, lo: float, hi: float, symmetric: bool = False) -> None:
        """Give "input" or "output" the scale of the range [lo, hi], widened to contain 0.

        Affine: `S = (hi - lo) / 254`, `Z = round(-127 - lo / S)`; symmetric: `S = max(-lo, hi) / 127`, Z = 0.
        """
        self._modules.pop(f"{name}_range", None)
        scale, zero = static_qparams(lo, hi, symmetric)
        device = next((t.device for t in self.parameters()), torch.device("cpu"))
        with torch.inference_mode(False):  # tensors made in it could not be trained with, nor loaded into
            self._buffers[f"{name}_scale"] = torch.tensor([scale], device=device)
            self._buffers[f"{name}_zero_point"] = torch.tensor([zero], dtype=torch.int8, device=device)
        self.__dict__.pop(_KEYS, None)

    def qparams(self, name: str) -> QParams | None:
        """See `flow.place.StaticLayer`."""
        trained, scale, zero = _PAIRS[name]
        if trained in self._modules:
            return self._modules[trained].qparams()  # type: ignore[union-attr, operator, no-any-return]
        buffers = self._buffers
        return None if buffers[scale] is None else (buffers[scale], buffers[zero])  # type: ignore[return-value]

    def qkey(self, name: str) -> object:
        """See `flow.place.StaticLayer`."""
        if _PAIRS[name][0] in self._modules:
            return None
        known: dict[str, tuple[object, QParams, list[int]]] = self.__dict__.setdefault(_KEYS, {})
        if torch.compiler.is_compiling():
            return known[name][0] if name in known else None
        pair = self.qparams(name)
        if pair is None or type(pair[0]) is not Tensor or pair[0].is_meta:
            return None
        versions = [storage.version(tensor) for tensor in pair]
        key, of, then = known.get(name, (None, pair, None))
        if then != versions or of[0] is not pair[0] or of[1] is not pair[1]:
            key = pair[0].item(), pair[1].item()
            known[name] = key, pair, versions
        return key

    def simulate(self, name: str, value: Tensor) -> Tensor:
        """See `flow.place.StaticLayer`."""
        if (trained := self._modules.get(f"{name}_range")) is not None:
            return trained(value)  # type: ignore[no-any-return]
        pair = self.qparams(name)
        return value if pair is None else fake_quantize_activations(value, *pair)

    def as_one(self, name: str) -> AbstractContextManager[bool]:
        """See `flow.place.StaticLayer`."""
        trained = self._modules.get(f"{name}_range")
        return nullcontext(False) if trained is None else trained.as_one()  # type: ignore[no-any-return, operator]

    def settle_ranges(self) -> None:
        """Scales that were trained become the buffers."""
        for name in NAMES:
            if (trained := self._modules.pop(f"{name}_range", None)) is not None:
                scale, zero = trained.qparams()  # type: ignore[operator]
                self._buffers[f"{name}_scale"] = scale.clone()
                self._buffers[f"{name}_zero_point"] = zero.clone()
        self.__dict__.pop(_KEYS, None)

    def settle(self) -> None:
        """As `PackedWeight.settle`, and `settle_ranges`."""
        self.settle_ranges()
        if hasattr(super(), "settle"):
            super().settle()

    def receive(self, x: Any) -> Any:
        """What the layer returns for an input that is to be rounded statically, or recorded."""
        recorder = recording.current()
        arithmetic = FLOATS if recorder is not None else self.arithmetic(x)
        place = Place(self, "input")
        if type(x) is Activation and (read := x.value).arithmetic is arithmetic:
            dtype, shape, rounded, last = read.dtype, read.shape, read.codes(place), read.channels_last
            if recorder is not None:
                recorder.reached(read)
        else:
            x = plain(x)
            dtype, shape, rounded, last = x.dtype, x.shape, arithmetic.enter(x, place), channels_last(x)
        value = Value(arithmetic, Product(self, rounded, last), self.output_shape(shape), dtype)
        return Activation(value) if recorder is not None or self.flow else value.laid()

    def arithmetic(self, x: Any) -> Any:
        """How it computes of x: in float while it trains, else in integers, with gradients if x may want them."""
        if self.training and not self.frozen:
            return FLOATS
        if isinstance(x, Activation):
            return x.value.arithmetic
        return STRAIGHT_THROUGH if torch.is_grad_enabled() and x.requires_grad else INTEGERS

    def statically(self) -> bool:
        """Whether `receive` is to take the input."""
        return self._buffers["input_scale"] is not None or recording.current() is not None

    @abstractmethod
    def output_shape(self, shape: Sequence[int]) -> Sequence[int]:
        """See `flow.place.StaticLayer`."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in (LAUNCHES, _KEYS)}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StaticInput":
        held = {name: self._buffers[name] for name in BUFFERS}
        for name in BUFFERS:
            self._buffers[name] = None
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(held)
        for name, tensor in held.items():
            if tensor is not None:  # the device may change, the dtype never
                moved = fn(tensor)
                self._buffers[name] = moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name in BUFFERS:
            given, own = state_dict.get(prefix + name), self._buffers[name]
            if given is not None and own is None:
                self._buffers[name] = torch.empty_like(given)
            elif own is not None and given is not None and given.dtype != own.dtype:
                error_msgs.append(f"{prefix}{name}: expected {own.dtype}, got {given.dtype}")
        self.__dict__.pop(_KEYS, None)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def static_qparams(lo: float, hi: float, symmetric: bool = False) -> tuple[float, int]:
    """Scale (a float32) and zero point of activations in [lo, hi]; codes lie in [-127, 127]. Raises ValueError for no range."""
    if not (lo <= hi and abs(lo) < float("inf") and abs(hi) < float("inf")):
        raise ValueError(f"range: expected finite lo <= hi, got {lo}, {hi}")
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    width = max(-lo, hi) / 127 if symmetric else (hi - lo) / 254
    tiny, most = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
    scale = torch.tensor(1.0 if width == 0 else min(max(width, tiny), most)).item()
    return scale, 0 if symmetric else max(-127, min(127, round(-127 - lo / scale)))


def plain(x: Any) -> Any:
    """The tensor that `x` is or stands for."""
    return x.float() if isinstance(x, Activation) else x


def channels_last(x: Tensor) -> bool:
    """Whether images `[N, C, H, W]` lie so, and torch's layers would give what does too."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def epilogue(
    addend: Codes | None, lo: float, hi: float, to: QParams | None, dtype: torch.dtype
) -> tuple[Any, ...]:
    """The last arguments of `linear_static` and `conv_static`."""
    added = (None, None, None) if addend is None else addend[:3]
    return (*added, *finite_ends(lo, hi), *(to or (None, None)), dtype if to is None else None)
