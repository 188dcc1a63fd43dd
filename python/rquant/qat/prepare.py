"""What a calibrated model gets to train with: scales that learn, or that observers move."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from torch import nn

from ..nn import PackedWeight
from ..nn.static import StaticInput
from ..observers import MovingAverage, Observer
from ..observers.methods import Method, observer_of
from ..scheme import Optimizer, Scheme
from .output import mark_outputs
from .ranges import LearnedRange, ObservedRange
from .scales import LearnedScale, LearnedWeightScale


def prepare(
    model: nn.Module,
    *,
    weights: Literal["learned", "rounded"] = "learned",
    activations: Literal["learned", "observed", "fixed"] = "learned",
    per_tensor: bool = False,
    start: str | Optimizer = "mse",
    observer: Method = "moving_average",
) -> list[nn.Parameter]:
    """Ready a model of unfrozen quantized layers for training, in place; returns the new parameters, logarithms of scales.

    `weights="learned"`: each weight's scales (of a tensor, if `per_tensor`; else of channels or groups, as its scheme says)
    become parameters, which begin where the optimizer `start` puts them; "rounded": scales are chosen anew in each step, as
    without `prepare`. `activations`, of layers that were calibrated: "learned"; "observed", a `rquant.observers` one a layer
    follows the batches until `freeze_observers`, "moving_average" with momentum 0.99; "fixed", as calibrated. Layers that were not calibrated stay dynamic.

    What the model returns in training gets a `dequantize()` that gradients pass, which does nothing: loops written for
    quantized outputs work. Make the optimizer afterwards, of `model.parameters()`. `rquant.freeze` ends it all. Tied weights share their scales.
    Raises ValueError for a model without unfrozen quantized layers and for another word.
    """
    for name, word, words in (
        ("weights", weights, ("learned", "rounded")),
        ("activations", activations, ("learned", "observed", "fixed")),
    ):
        if word not in words:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, words))}, got {word!r}")
    layers = [m for m in model.modules() if isinstance(m, PackedWeight) and not m.frozen]
    if not layers:
        raise ValueError(
            "model: expected quantized layers that are not frozen, got none: call rquant.quantize first"
        )
    observer_of(observer, "observer")
    make = _slow_average if observer == "moving_average" else partial(observer_of, observer)
    if weights == "learned":
        _learn_weights(layers, per_tensor, start)
    static = [m for m in model.modules() if isinstance(m, StaticInput) and not getattr(m, "frozen", False)]
    for module in static:
        module.settle_ranges()  # of an earlier call
    # one zero point may be 0 by chance
    symmetric = all(m.qparams(name)[1].item() == 0 for m in static for name in m.calibrated or ())  # type: ignore[index]
    for module in static:
        _add_ranges(module, activations, symmetric, make)
    mark_outputs(model)
    return [m.log_scale for m in model.modules() if isinstance(m, LearnedScale)]


def _slow_average() -> Observer:
    """What is averaged in training are more batches than in calibration, of a model that changes."""
    return MovingAverage(0.99)


def _learn_weights(layers: list[PackedWeight], per_tensor: bool, start: str | Optimizer) -> None:
    made: dict[tuple[int, Scheme], LearnedWeightScale] = {}
    for layer in layers:
        scheme = layer.scheme
        if scheme.qtype.is_floating_point or scheme.qtype.is_cast or "weight_range" in layer._modules:
            continue
        key = id(layer._parameters["weight"]), scheme
        if key not in made:
            made[key] = LearnedWeightScale(layer.float_matrix(), scheme, per_tensor, start)
        layer.add_module("weight_range", made[key])
        layer.scheme = replace(scheme, optimizer=made[key], zero_point_dtype="uint8")


def _add_ranges(
    layer: StaticInput, activations: str, symmetric: bool, observer: Callable[[], Observer]
) -> None:
    for name in layer.calibrated or ():
        scale, zero = layer.qparams(name)  # type: ignore[misc]
        if activations == "learned":
            layer.add_module(f"{name}_range", LearnedRange(scale, zero))
        elif activations == "observed":
            layer.add_module(f"{name}_range", ObservedRange(scale, zero, symmetric, observer))


def freeze_observers(model: nn.Module, frozen: bool = True) -> None:
    """Stop the observers of `prepare(activations="observed")`: scales stay as they are; with `frozen=False` they go on."""
    for module in model.modules():
        if isinstance(module, ObservedRange):
            module.frozen = frozen
