"""Mixture-of-experts layers whose tokens come sorted by expert, and whose weights are 3-D parameters."""

import torch
from torch import Tensor, nn

from .container import Container
from .registry import register_module


def _is_transformers(module: nn.Module, ending: str) -> bool:
    cls = type(module)
    return cls.__module__.startswith("transformers.models.") and cls.__name__.endswith(ending)


def is_parallel_experts(module: nn.Module) -> bool:
    """Whether it is one of transformers' `...ParallelExperts` (JetMoE; GraniteMoE before version 5)."""
    return _is_transformers(module, "ParallelExperts")


def is_llama4_experts(module: nn.Module) -> bool:
    """Whether it is transformers' `Llama4TextExperts`."""
    return _is_transformers(module, "Llama4TextExperts")


def _refusal(module: nn.Module, *names: str) -> str | None:
    fits = all(p is not None and p.dim() == 3 for p in map(module._parameters.get, names))
    return None if fits else f"expected Parameters of 3 dimensions: {', '.join(names)}"


@register_module(is_parallel_experts)
class ParallelExperts(Container):
    """One matrix per expert, `weight` `[experts, out, in]`: the children `experts`."""

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """It needs its weight as a Parameter."""
        return _refusal(module, "weight")

    @classmethod
    def split(cls, module: nn.Module) -> "ParallelExperts":
        """One child per expert."""
        made = cls.like(module, without=("weight",))
        made.experts = nn.ModuleList(map(cls.linear, module._parameters["weight"]))  # type: ignore[arg-type]
        return made

    def forward(self, inputs: Tensor, expert_size: list[int]) -> Tensor:
        """Rows `[tokens, in]`, the first `expert_size[0]` of them the first expert's, and so on; `[tokens, out]`."""
        parts = zip(self.experts, inputs.split(expert_size), strict=True)
        return torch.cat([expert(rows) for expert, rows in parts])


@register_module(is_llama4_experts)
class Llama4Experts(Container):
    """Parameters `gate_up_proj` and `down_proj` `[experts, in, out]` become lists of layers of the same names."""

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """It needs both projections as Parameters."""
        return _refusal(module, "gate_up_proj", "down_proj")

    @classmethod
    def split(cls, module: nn.Module) -> "Llama4Experts":
        """One child per expert and projection; a matrix is turned when it is quantized."""
        made = cls.like(module, without=("gate_up_proj", "down_proj"))
        for name in ("gate_up_proj", "down_proj"):
            weights = module._parameters[name].transpose(1, 2)  # type: ignore[union-attr]
            setattr(made, name, nn.ModuleList(map(cls.linear, weights)))
        return made

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Rows `[experts * tokens, hidden]`, as many for each expert; the same shape."""
        out = []
        parts = hidden_states.tensor_split(len(self.down_proj))
        for rows, first, down in zip(parts, self.gate_up_proj, self.down_proj, strict=True):
            gate, up = first(rows).chunk(2, -1)
            out.append(down(up * self.act_fn(gate)))
        return torch.cat(out)
