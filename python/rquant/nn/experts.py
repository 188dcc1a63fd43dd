"""Mixture-of-experts layers that hold all experts' weights in one 3-D parameter per projection."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .container import Container
from .registry import register_module

_FLAGS = ("has_gate", "has_bias", "is_transposed")
_UP, _DOWN = ("gate_up_proj", "up_proj"), "down_proj"


def is_experts(module: nn.Module) -> bool:
    """Whether it is what transformers' `use_experts_implementation` marks, since version 5. That is not imported."""
    marked = hasattr(type(module), "_apply_gate") and all(flag in module.__dict__ for flag in _FLAGS)
    return marked and hasattr(type(module).forward, "__wrapped__")  # not a subclass with a forward of its own


@register_module(is_experts)
class Experts(Container):
    """Experts as transformers has them (Mixtral, Qwen-MoE, GPT-OSS ...), each matrix a child of its own.

    Parameters `gate_up_proj` (or `up_proj`, without a gate) and `down_proj` `[experts, out, in]`, `[experts, in, out]` if
    `is_transposed`, and their `_bias` `[experts, out]` become lists of layers of the same names. Any class of that layout
    whose forward takes what this one's does can be registered for it; its `act_fn`, `_apply_gate` and
    `post_expert_norm` are used if it has them.
    """

    apply_gate: Callable[[nn.Module, Tensor], Tensor]

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """It needs both projections as Parameters."""
        own, up = module._parameters, _up_name(module)
        for name in (up, _DOWN):
            weight = own.get(name)
            if weight is None or weight.dim() != 3:
                return f"expected a Parameter {name} of 3 dimensions"
        return None

    @classmethod
    def split(cls, module: nn.Module) -> "Experts":
        """One child per expert and projection; a transposed matrix is turned when it is quantized."""
        up = _up_name(module)
        made = cls.like(module, without=(up, _DOWN, f"{up}_bias", f"{_DOWN}_bias"))
        for name in (up, _DOWN):
            weights = module._parameters[name]
            if getattr(module, "is_transposed", False):
                weights = weights.transpose(1, 2)  # type: ignore[union-attr]
            bias = module._parameters.get(f"{name}_bias")
            biases = [None] * len(weights) if bias is None else bias  # type: ignore[arg-type]
            setattr(made, name, nn.ModuleList(map(cls.linear, weights, biases)))  # type: ignore[arg-type]
        gated = getattr(type(module), "_apply_gate", _gated)
        made.apply_gate = gated if up == _UP[0] else _activated
        return made

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Each token's chosen experts, weighted and added up in float32.

        `hidden_states` `[tokens, hidden]`; `top_k_index` (an index past the last expert is for nobody) and
        `top_k_weights` `[tokens, k]`. Only experts that are asked compute; in a traced graph, which cannot ask, all do.
        """
        out = torch.zeros(hidden_states.shape, dtype=torch.float32, device=hidden_states.device)
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or hidden_states.is_meta:
            return self._all_experts(out, hidden_states, top_k_index, top_k_weights)
        experts = top_k_index.flatten()
        order = experts.argsort(stable=True)
        tokens, weights = order // top_k_index.shape[1], top_k_weights.flatten()[order]
        sizes: list[int] = experts.bincount(minlength=len(self._modules[_DOWN])).tolist()  # type: ignore[arg-type]
        for expert, (rows, weight) in enumerate(zip(tokens.split(sizes), weights.split(sizes), strict=True)):
            if len(rows) and expert < len(self._modules[_DOWN]):  # type: ignore[arg-type]
                y = self._expert(expert, hidden_states[rows])
                out = out.index_add(0, rows, (y * weight.unsqueeze(1)).float())
        return out.to(hidden_states.dtype)

    def _all_experts(self, out: Tensor, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        count = len(self._modules[_DOWN])  # type: ignore[arg-type]
        dense = torch.zeros(x.shape[0], count + 1, dtype=weights.dtype, device=x.device)
        dense = dense.scatter_add(1, index.clamp(max=count), weights)
        for expert in range(count):
            y = self._expert(expert, x) * dense[:, expert : expert + 1]
            out = out + torch.where(dense[:, expert : expert + 1] != 0, y, 0).float()
        return out.to(x.dtype)

    def _expert(self, expert: int, x: Tensor) -> Tensor:
        up: Any = self._modules[_up_name(self)]
        down: Any = self._modules[_DOWN]
        y = down[expert](self.apply_gate(self, up[expert](x)))
        return self.post_expert_norm(y) if getattr(self, "has_post_expert_norm", False) else y


def _up_name(module: nn.Module) -> str:
    return _UP[0] if hasattr(module, _UP[0]) else _UP[1]


def _gated(experts: nn.Module, x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return experts.act_fn(gate) * up


def _activated(experts: nn.Module, x: Tensor) -> Tensor:
    return experts.act_fn(x)
