"""The ways the demo packs a model, and the packing itself: quantize, freeze, save, load."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

import rquant


@dataclass(frozen=True)
class Scheme:
    """One row of a table. `weights=None` leaves the model as it is."""

    weights: str | None
    activations: str | None = None
    group_size: int | None = None

    @property
    def label(self) -> str:
        if self.weights is None:
            return "float32"
        return self.weights if self.group_size is None else f"{self.weights} g{self.group_size}"

    @property
    def arithmetic(self) -> str:
        """What the products are computed in."""
        return "float" if self.activations is None else self.activations

    def __str__(self) -> str:
        return f"{self.label}/{self.arithmetic}"


FLOAT = Scheme(None)
SCHEMES = [
    FLOAT,
    *(
        Scheme(weights, activations, group_size)
        for weights, group_size in (("int8", None), ("int4", 64), ("int4", 32), ("int2", 32))
        for activations in (None, "int8")
    ),
]


def packed(
    model: torch.nn.Module, scheme: Scheme, skeleton: Callable[[], torch.nn.Module], folder: Path
) -> tuple[torch.nn.Module, int]:
    """The model as a user would get it on another day, read back from its file, and the file's bytes.

    Embeddings are packed too, which `quantize` by itself leaves alone unless they are tied to a Linear.
    """
    path = folder / "model.safetensors"
    if scheme.weights is None:
        safetensors.torch.save_model(model, str(path))
        return model, path.stat().st_size
    copied = copy.deepcopy(model)
    rquant.quantize(copied, scheme.weights, scheme.activations, group_size=scheme.group_size, include="*")
    rquant.freeze(copied)
    rquant.save(copied, path)
    return rquant.load(path, skeleton()).eval(), path.stat().st_size
