"""Packed layers back as the float modules they were, for `model.dequantize()`; names of tensors as they are saved."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...nn import Container, Embedding, PackedWeight, storage


def dequantize_layers(model: nn.Module, transposed: set[str], dtype: torch.dtype | None) -> None:
    """Replace every packed layer; `transposed` names those that were Conv1D. Tied weights stay tied.

    Raises ValueError for a model with modules that were taken apart: nothing puts them together again.
    """
    for name, module in model.named_modules():
        if isinstance(module, Container):
            raise ValueError(
                f"{name}: expected layers of one weight, got {type(module).__name__}, which was taken apart"
            )
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


def keep_packed_names(model: Any, state: dict[str, Tensor]) -> None:
    """Have transformers 5 save packed tensors as they are where it would undo a merge of float ones (experts)."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import PrefixChange, WeightConverter
    except ImportError:  # 4.57 merges nothing
        return
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:  # made from a configuration: what transformers would then take
        conversions = get_model_conversion_mapping(model, add_legacy=False)
        conversions = [c for c in conversions if not isinstance(c, PrefixChange)]
    packed = [name for name in state if name.rpartition(".")[2] in storage.CANONICAL]

    def undoes(conversion: Any) -> bool:
        reverse = conversion.reverse_transform()
        return any(reverse.rename_source_key(name)[1] is not None for name in packed)

    model._weight_conversions = [c for c in conversions if not (isinstance(c, WeightConverter) and undoes(c))]
