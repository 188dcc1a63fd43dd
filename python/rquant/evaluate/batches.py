"""Calling any model on any batch, and finding the tensor in what it returns."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

Batch = Any
"""What a model takes: a tensor, a tuple or list (arguments) or a mapping (keyword arguments)."""


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Without gradients and in eval mode (no dropout); each module's own mode is back afterwards."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU for a model without any."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def call(model: nn.Module, batch: Batch) -> Any:
    """The model's output for a batch, whose tensors are moved to where the model is."""
    device = device_of(model)
    batch = tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def tensor_of(output: Any) -> Tensor:
    """The tensor that counts: the output itself, its `logits` or `last_hidden_state`, or the first of a tuple.

    Raises TypeError for an output that has none of them.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "last_hidden_state"):
        if isinstance(getattr(output, name, None), Tensor):
            return getattr(output, name)  # type: ignore[no-any-return]
    if isinstance(output, tuple | list) and output:
        return tensor_of(output[0])
    raise TypeError(
        f"model: expected an output with a tensor, logits or last_hidden_state, got {type(output).__name__}"
    )
