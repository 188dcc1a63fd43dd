"""The scale of a layer's input or output while it trains: observed on, or learned.

A layer keeps one as its child `input_range` or `output_range`; `freeze` turns it into the layer's buffers.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .._fake_quantize import fake_quantize_activations
from ..nn.static import static_qparams
from ..observers import Observer
from ..qtypes import qint8
from .flags import Flags
from .recomputation import recomputing
from .scales import Float32, LearnedScale


class ObservedRange(Flags, Float32):
    """The scale follows an observer that sees each batch in training, until `frozen`.

    `scale` float32 `[1]`, `zero_point` int8 `[1]`: the last ones, by which eval mode rounds. A state dict has what the
    observer knows too, under `observer.`, and whether it is `symmetric` and `frozen`: training goes on from there.
    """

    FLAGS = ("symmetric", "frozen")
    scale: Tensor
    zero_point: Tensor

    parts: list[Tensor] | None = None

    def __init__(
        self, scale: Tensor, zero_point: Tensor, symmetric: bool, make: Callable[[], Observer]
    ) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero_point", zero_point.detach().clone())
        self.make, self.symmetric, self.frozen = make, symmetric, False
        self._begin()

    def _begin(self) -> None:
        """The range known so far is as good as a batch."""
        self.observer = self.make()
        ends = torch.tensor([-127.0, 127.0]) - self.zero_point.item()
        self.observer.update(ends * self.scale.item())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        known = self.observer.state_dict()
        destination.update({f"{prefix}observer.{name}": tensor for name, tensor in known.items()})

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
        mark = f"{prefix}observer."
        known = {key.removeprefix(mark): t.clone() for key, t in state_dict.items() if key.startswith(mark)}
        unexpected: list[str] = []
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected, error_msgs
        )
        unexpected_keys += [key for key in unexpected if not key.startswith(mark)]
        if not known:  # an older state dict: the range is all there is to go on from
            self._begin()
            return
        self.observer = self.make()
        try:
            self.observer.load_state_dict(known)
        except ValueError as error:
            error_msgs.append(f"{mark.removesuffix('.')}: {error}")

    def qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point as they are."""
        return self.scale, self.zero_point

    def forward(self, x: Tensor) -> Tensor:
        """x rounded and back, with gradients; a batch in training moves the range first, once (of `parts`: afterwards)."""
        if self.training and not self.frozen and not recomputing():
            if self.parts is None:
                self._follow(x.detach())
            else:
                self.parts.append(x.detach().flatten())
        # copies: a backward pass to come needs them as they are
        return fake_quantize_activations(x, self.scale.clone(), self.zero_point.clone())

    @contextmanager
    def as_one(self) -> Iterator[bool]:
        """What comes meanwhile is rounded by one scale, and then followed as one batch."""
        if self.parts is not None:  # parts of a part
            yield False
            return
        self.parts = []
        try:
            yield False
            if self.parts:
                self._follow(torch.cat(self.parts))
        finally:
            self.parts = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _follow(self, x: Tensor) -> None:
        """An observer is Python's: no graph takes it in."""
        self.observer.update(x)
        lo, hi = self.observer.range(qint8, self.symmetric)
        scale, zero = static_qparams(lo, hi, self.symmetric)
        # in place: whoever holds a model's buffers, as DistributedDataParallel does to send them around, holds these
        self.scale.fill_(scale)
        self.zero_point.fill_(zero)

    def extra_repr(self) -> str:
        """How, and whether still."""
        return f"{type(self.observer).__name__}{', frozen' if self.frozen else ''}"


class LearnedRange(LearnedScale):
    """The scale is a parameter; the zero point stays what calibration found."""

    zero_point: Tensor

    def as_one(self) -> AbstractContextManager[bool]:
        """See `ObservedRange`: it follows nothing."""
        return nullcontext(False)

    def __init__(self, scale: Tensor, zero_point: Tensor) -> None:
        super().__init__(scale)
        self.register_buffer("zero_point", zero_point.detach().clone())

    def qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point as they are."""
        with torch.no_grad():
            return self.scale, self.zero_point

    def forward(self, x: Tensor) -> Tensor:
        """x rounded and back, with gradients to it and to the scale."""
        return fake_quantize_activations(x, self.scale, self.zero_point)
