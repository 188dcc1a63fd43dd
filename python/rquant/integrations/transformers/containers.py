"""Modules that `rquant.quantize` takes apart (experts in 3-D parameters, attention), while their tensors are read.

The checkpoint knows the whole module, so that is what the model has meanwhile; once all its own parameters are there
they go into the parts, and nothing float is kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...nn import Container, PackedWeight
from ...nn.placing import place
from .layers import take_weight


@dataclass
class Pending:
    """`whole`, in the model while it loads; `container`, whose layers await their weights, takes its place."""

    whole: nn.Module
    container: Container
    done: bool = False

    def take(self, key: str, value: Tensor) -> None:
        """Keep the parameter that was read; fill the container if it was the last. Raises ValueError as `fill` does."""
        parameter = nn.Parameter(value, requires_grad=False)
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        self.whole._parameters[key] = parameter
        if not any(p.is_meta for p in self.whole.parameters()):
            self.fill()

    def fill(self) -> None:
        """Give every part its weight. Raises ValueError, naming the part, for NaN or infinity."""
        self.done = True
        try:
            for path, part in type(self.container).split(self.whole).named_modules():
                ours = self.container.get_submodule(path)
                for key, parameter in part._parameters.items():
                    if parameter is None:
                        continue
                    if isinstance(ours, PackedWeight) and key == "weight":
                        try:
                            take_weight(ours, parameter.detach(), transposed=False)
                        except ValueError as error:
                            raise ValueError(f"{path}.{error}") from None
                    else:  # of its own memory, not a part of the whole's
                        ours._parameters[key] = nn.Parameter(parameter.detach().clone())
        finally:
            for key, parameter in self.whole._parameters.items():
                if parameter is not None:
                    empty = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
                    empty._is_hf_initialized = True  # type: ignore[attr-defined]
                    self.whole._parameters[key] = empty


def put_back(model: nn.Module, before: dict[str, nn.Module]) -> dict[str, Pending]:
    """Put each module that was taken apart back in its place; what it was `before`, by name."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Container)}
    pending = {name: Pending(before[name], container) for name, container in found.items()}
    for name, one in pending.items():
        place(model, name, one.whole)
    return pending
