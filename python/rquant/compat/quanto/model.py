"""quanto's calls on whole models and on modules."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ... import model as _model
from ... import serialize
from ...nn.registry import registration_of
from ...qat.output import mark_outputs
from ...qtypes import QType
from ...report import Report
from ...selection import Patterns


def quantize(
    model: nn.Module,
    weights: QType | str | None = None,
    activations: QType | str | None = None,
    optimizer: Any = None,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Report:
    """`rquant.quantize` with quanto's arguments, in place; the model stays trainable until `freeze`.

    Its output has from now on a `dequantize()` that gradients pass (`Output`). Raises ValueError without `weights`, and
    as `rquant.quantize` does.
    """
    if weights is None:
        raise ValueError(
            "weights: expected a qtype or its name, got None: activations alone are not quantized"
        )
    optimizer = "minmax" if optimizer is None else optimizer
    report = _model.quantize(
        model, weights, activations, optimizer=optimizer, include=include, exclude=exclude
    )
    mark_outputs(model)
    return report


def quantize_module(
    module: nn.Module,
    weights: QType | str | None = None,
    activations: QType | str | None = None,
    optimizer: Any = None,
) -> nn.Module | None:
    """A quantized, unfrozen module on the very Parameters of `module`; None if there is no quantized form of it.

    What `QLinear.from_module` is to quanto.
    """
    if registration_of(module) is None:
        return None
    made = copy.copy(module)  # becomes the quantized class, with a state of its own
    quantize(made, weights, activations, optimizer, include="*")
    return made


def requantize(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    quantization_map: dict[str, Any],
    device: torch.device | str | None = None,
) -> nn.Module:
    """`rquant.requantize`: the float skeleton becomes the model that was saved; its outputs are as after `quantize`."""
    if "format" not in quantization_map:
        raise ValueError(
            "quantization_map: expected one by rquant.compat.quanto, got one without 'format'; quanto's own are not read"
        )
    serialize.requantize(model, state_dict, quantization_map, device)
    mark_outputs(model)
    return model
