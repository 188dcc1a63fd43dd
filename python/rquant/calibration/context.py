"""`with rquant.Calibration(): model(samples)`."""

import sys
import warnings
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ..flow import Recorder, recording
from ..io.safetensors_header import PathLike
from ..nn import Unpacked
from ..nn.static import StaticInput
from ..observers.methods import Method
from ..qtypes import qint8
from .choice import Overrides
from .report import CalibrationReport
from .statistics import Passage, PlaceName, Spot, Statistics


class Calibration(Recorder):
    """A context in which a quantized model sees samples; at its end each layer's input has one scale for all that follow.

        rquant.quantize(model, activations="int8")
        with rquant.Calibration(method="mse"):
            for batch in batches:
                model(batch)
        rquant.freeze(model)

    The model runs as it is, in any way and any number of times: nothing is traced, and inside it computes in float. What
    other threads run meanwhile is as ever. A batch is what a layer sees in one call of the outermost module: all steps of a
    recurrent layer, all parts of a concatenation, all calls of a shared one.
    `method`: "minmax", "moving_average" (of weight `momentum` for what was before), "percentile" (`percentile` of the
    values), "mse", "entropy", "cross_entropy", or a factory of `rquant.observers.Observer`. `overrides` gives layers another
    one by their names, as globs or `"re:..."`; the first that matches holds. Scales are affine, or with `symmetric` have
    zero point 0. `model` names the layers; without it, their names are those in the outermost modules that are called.

    Entered again, it goes on with what it knows. After an exception inside no scale changes. Layers that no sample reached
    stay dynamic, and are in `unseen`. `statistics` is what was seen: 32 KiB a tensor, whatever the samples.

    Raises ValueError at once for arguments and, with `model`, if it has no layer with int8 activations; inside for NaN or
    infinity, as `conv1.input: ... at [3, 5]`; at the end for an override that matches no layer. Warns if no layer ran.
    """

    UNDER_WAY = 0
    """Calls of modules that have begun when it is entered."""

    def __init__(
        self,
        method: Method = "moving_average",
        *,
        momentum: float = 0.9,
        percentile: float = 99.999,
        symmetric: bool = False,
        overrides: Overrides = None,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self._depth = 0
        self.statistics = Statistics(method, momentum, percentile, symmetric, overrides)
        self.layers: dict[str, Any] = {}
        """By name: those that ran."""
        self.names: dict[nn.Module, str] = {}
        """Of all modules of what was called."""
        self._taken: set[str] = set()
        if model is not None:
            self._name(model)
            if not any(map(_may_be_calibrated, self.names)):
                raise ValueError(
                    "model: expected layers with int8 activations, got none; "
                    "rquant.quantize(model, activations='int8') comes first"
                )

    def _name(self, root: nn.Module) -> None:
        """Names of what is new in `root`; one that another module has already gets a number."""
        for name, module in getattr(root, "_orig_mod", root).named_modules():  # as torch.compile wraps it
            if module not in self.names:
                unique, number = name, 2
                while unique in self._taken:
                    unique, number = f"{name}#{number}", number + 1
                self.names[module] = unique
                self._taken.add(unique)

    def __enter__(self) -> "Calibration":
        self._stack = ExitStack()
        self._depth = self.UNDER_WAY
        self._stack.enter_context(self.recording(self._depth))
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):  # torch 2.6
            self._stack.enter_context(torch.compiler.set_stance("force_eager"))
        for hook in (
            register_module_forward_pre_hook(lambda module, args: self._meet(module)),
            register_module_forward_hook(lambda module, args, output: self._leave(), always_call=True),
        ):
            self._stack.callback(hook.remove)
        return self

    def _meet(self, module: nn.Module) -> None:
        if recording.current() is self:
            self._depth += 1
            if module not in self.names:  # modules are entered from the outside in: it is outermost
                self._name(module)

    def _leave(self) -> None:
        if recording.current() is self:
            self._depth -= 1
            if self._depth == 0:
                self.statistics.end_batch()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__dict__.pop("_stack").__exit__(kind, error, traceback)  # what is left can be copied
        self.statistics.end_batch()
        if kind is not None:
            return
        if not self.layers:
            if self.must_find_layers():
                warnings.warn(
                    "Calibration: no layer with int8 activations ran inside; "
                    "rquant.quantize(model, activations='int8') comes first",
                    stacklevel=2,
                )
            return
        for layer in self.flowing:  # of an `Unpacked` one the input is not rounded, and was not seen
            self._known(layer)
        for name, layer in self.layers.items():
            flows = layer in self.flowing and layer not in self.leaked
            self.statistics.passages[name] = Passage(flows, self.kept.get(layer))
        self.statistics.choice.check(self.layers)
        self._assign()
        self.done()

    def must_find_layers(self) -> bool:
        """Whether to warn where there was nothing to calibrate; for subclasses."""
        return True

    def done(self) -> None:
        """Called when scales are set; for subclasses."""

    def _assign(self) -> None:
        self.statistics.assign(self.layers, self.statistics.ranges(), self.statistics.symmetric)

    def input(self, layer: Any, value: Tensor) -> None:
        """See `Recorder`."""
        self._see(layer, "input", value)

    def output(self, layer: Any, value: Tensor) -> None:
        """See `Recorder`."""
        self._see(layer, "output", value)

    def _known(self, layer: Any) -> str:
        """The name of a layer that ran."""
        if layer not in self.names:
            self._name(layer)
        name = self.names[layer]
        self.layers[name] = layer
        return name

    def _see(self, layer: Any, place: PlaceName, value: Tensor) -> None:
        spot = Spot(self._known(layer), place)
        self.statistics.at(spot).update(value, str(spot))

    @property
    def unseen(self) -> list[str]:
        """Names of the layers with int8 activations that no sample has reached: they stay dynamic."""
        return [
            name
            for module, name in self.names.items()
            if _may_be_calibrated(module) and name not in self.layers
        ]

    def apply(self, model: nn.Module, method: Method | None = None, **arguments: Any) -> None:
        """`Statistics.apply`: scales by another method, without the samples."""
        self.statistics.apply(model, method, **arguments)

    def merge(self, other: "Calibration | Statistics") -> None:
        """Know also what another one has seen, as if it had come after; the layers that ran here get new scales."""
        self.statistics.merge(other.statistics if isinstance(other, Calibration) else other)
        self._assign()

    def all_reduce(self, group: Any = None) -> None:
        """Give every process of a `torch.distributed` group the same scales, of what all of them have seen."""
        self.statistics.all_reduce(group)
        self._assign()

    def save(self, path: PathLike) -> None:
        """`Statistics.save`."""
        self.statistics.save(path)

    def report(self) -> CalibrationReport:
        """Ranges and errors by each method; `print` it."""
        return CalibrationReport.of(self.statistics, self.unseen)


def _may_be_calibrated(module: nn.Module) -> bool:
    """Whether it has an input to round."""
    rounds = isinstance(module, StaticInput) and not isinstance(module, Unpacked)
    return rounds and getattr(module, "activations", qint8) == qint8
