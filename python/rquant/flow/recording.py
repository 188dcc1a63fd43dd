"""Watching a model while it runs on samples: what each layer sees, and which outputs stay among layers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from .place import Place, StaticLayer
    from .value import Value

_current: "Recorder | None" = None
_thread = 0
"""The thread that it records: others go on computing as they did."""


def current() -> "Recorder | None":
    """Who records now, in this thread."""
    return None if _current is None or get_ident() != _thread else _current


class Recorder(ABC):
    """Base of what calibrates: `input` and `output` are called with values in float while `recording()` lasts.

    Layers compute in float meanwhile, their weights rounded. Afterwards `flowing` holds the layers whose output reached
    another quantized layer through operations that int8 passes, and that did not leave the outermost module; `kept` the
    stage at which a layer's output has several readers.
    """

    def __init__(self) -> None:
        self.flowing: set[StaticLayer] = set()
        self.leaked: set[StaticLayer] = set()
        self.kept: dict[StaticLayer, int] = {}
        self.joining: Place | None = None

    @abstractmethod
    def input(self, layer: "StaticLayer", value: Tensor) -> None:
        """`value` is about to be `layer`'s input."""

    @abstractmethod
    def output(self, layer: "StaticLayer", value: Tensor) -> None:
        """`value`, which came of `layer`'s output, is needed as codes by something other than a layer."""

    @contextmanager
    def as_one(self, place: "Place") -> Iterator[bool]:
        """Parts of what is to be `place`'s input: they are one batch, of which whoever gets True tells, once it is whole."""
        first, before = place != self.joining, self.joining
        self.joining = place
        try:
            yield first
        finally:
            self.joining = before

    def reached(self, value: "Value") -> None:
        """A quantized layer read `value`."""
        self.flowing.update(value.layers())

    def shared(self, layer: "StaticLayer", stage: int, value: Tensor) -> None:
        """`layer`'s output at this stage is `value`, and is read again after a fused operation took it along."""
        self.kept.setdefault(layer, stage)
        self.output(layer, value.detach())

    @contextmanager
    def recording(self, depth: int = 0) -> Iterator[None]:
        """Record all that this thread runs inside; raises RuntimeError if another recorder does.

        `depth`: calls of modules that are under way already, and end inside.
        """
        global _current, _thread
        if _current is not None:
            raise RuntimeError("recording: expected no other calibration under way, got one inside another")

        def enter(module: nn.Module, args: Any) -> None:
            nonlocal depth
            depth += current() is self

        def leave(module: nn.Module, args: Any, output: Any) -> Any:
            nonlocal depth
            if current() is not self:
                return None
            depth -= 1
            return tree_map(self._out, output) if depth == 0 else None

        handles = [
            torch_module.register_module_forward_pre_hook(enter),
            torch_module.register_module_forward_hook(leave, always_call=True),
        ]
        _current, _thread = self, get_ident()
        try:
            with torch.no_grad():
                yield
        finally:
            _current = None
            for handle in handles:
                handle.remove()

    def _out(self, value: Any) -> Any:
        """What the user gets of an output: floats; its layers give floats from then on."""
        from .activation import Activation

        if not isinstance(value, Activation):
            return value
        self.leaked.update(value.layers())
        return value.float()
