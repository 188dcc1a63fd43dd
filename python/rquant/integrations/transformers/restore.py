"""Packed layers back as the float modules they were, for `model.dequantize()`."""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...nn import Embedding, PackedWeight


def dequantize_layers(model: nn.Module, transposed: set[str], dtype: torch.dtype | None) -> None:
    """Replace every packed layer; `transposed` names those that were Conv1D. Tied weights stay tied."""
    weights: dict[int, nn.Parameter] = {}
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if isinstance(layer, PackedWeight):
            key = id(next(iter(layer.held.values())))
            if key not in weights:
                weights[key] = nn.Parameter(layer.dequantize(dtype))
            parent, _, child = name.rpartition(".")
            setattr(
                model.get_submodule(parent), child, _float_module(layer, weights[key], name in transposed)
            )


def _float_module(layer: PackedWeight, weight: nn.Parameter, transposed: bool) -> nn.Module:
    n, k = layer.weight_shape
    made: nn.Module
    if isinstance(layer, Embedding):
        made = nn.Embedding(n, k, layer.padding_idx, device="meta")
    elif transposed:
        made = Conv1D(n, k)
        weight = nn.Parameter(weight.detach().T.contiguous())
    else:
        made = nn.Linear(k, n, bias=layer._parameters["bias"] is not None, device="meta")
    made._parameters["weight"] = weight
    bias: Tensor | None = layer._parameters.get("bias")
    if bias is not None:
        made._parameters["bias"] = nn.Parameter(bias.detach().to(weight.dtype))
    made.training = layer.training
    return made
