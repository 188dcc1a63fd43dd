"""Where values are rounded, and what a layer offers to those who compute with it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

QParams = tuple[Tensor, Tensor]
"""A scale (float32 `[1]`) and its zero point (int8 `[1]`)."""


class StaticLayer(Protocol):
    """A layer whose input, and perhaps output, has a calibrated scale."""

    keep: int | None
    """The stage of its output that has several readers and is made codes for them (see `Activation`)."""

    def qparams(self, name: str) -> QParams | None:
        """Of its "input" or "output"; None if not calibrated."""

    def qkey(self, name: str) -> object:
        """The same as a Python value that compares equal where they do; None if that is not known."""

    def output_shape(self, shape: Sequence[int]) -> Sequence[int]:
        """Of an input of this shape."""

    def product(
        self, x: Any, addend: Any, lo: float, hi: float, to: QParams | None, dtype: torch.dtype
    ) -> Tensor:
        """On int8 codes: `clamp(layer(x) + addend, lo, hi)`, as codes under `to` or floats of `dtype`."""

    def float_product(self, x: Tensor) -> Tensor:
        """The layer on floats, its weight rounded as it is in deployment."""

    def as_one(self, name: str) -> AbstractContextManager[bool]:
        """While parts of one "input" or "output" are simulated; gives False: the whole need not be."""

    def simulate(self, name: str, value: Tensor) -> Tensor:
        """`value` rounded as "input" or "output" of the layer is, with gradients; as it is if that is not calibrated."""


class Place(NamedTuple):
    """The input or output of a layer."""

    layer: StaticLayer
    name: Literal["input", "output"]

    @property
    def qparams(self) -> QParams | None:
        """Scale and zero point, if calibrated."""
        return self.layer.qparams(self.name)

    @property
    def key(self) -> object:
        """See `StaticLayer.qkey`."""
        return self.layer.qkey(self.name)
