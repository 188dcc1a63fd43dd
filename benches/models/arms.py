"""Which arms there are, how each is made of the float32 model, and how near to it an answer must be."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from .gguf_files import BITS, gguf_file
from .torch_arm import TorchArm, bfloat16, packed, with_int8_activations

REFERENCE = "float32"
DEFAULT = "float32,bfloat16,int8,int8 a8,int4 g64,int4 g64 a8,int4 g32,int4 g32 a8,F16,Q8_0,Q4_0,Q4_K_M"
CHECKED = 64  # tokens that are read for the check
LEAST = {32: 0.99, 16: 0.99, 8: 0.99, 4: 0.85, 2: -1.0}
"""Bits a weight -> the least cosine between an arm's logits and float32's, both centred, a mean over the tokens."""
LEAST_A8 = {8: 0.98, 4: 0.85, 2: -1.0}
"""The same with int8 activations."""


@dataclass(frozen=True)
class Check:
    """How an arm's logits stand to float32's: mean cosine over tokens, and the share of tokens with the same top."""

    cosine: float
    top1: float
    least: float

    @property
    def passed(self) -> bool:
        return self.cosine >= self.least  # not of NaN


@dataclass(frozen=True)
class Spec:
    """An arm's name taken apart: `int4 g64 a8`, `float32`, `Q4_0`."""

    name: str
    bits: int
    weights: str | None = None
    group_size: int | None = None
    integer: bool = False

    @classmethod
    def of(cls, name: str) -> "Spec":
        """Raises ValueError for what is no arm."""
        if name in BITS:
            return cls(name, BITS[name])
        if name in ("float32", "bfloat16"):
            return cls(name, 32 if name == "float32" else 16)
        weights, *rest = name.split()
        groups = [int(part[1:]) for part in rest if part[0] == "g"]
        if weights not in ("int8", "int4", "int2") or len(groups) + rest.count("a8") != len(rest):
            raise ValueError(f"{name!r} is no arm; a list of some: {DEFAULT}")
        return cls(name, int(weights[3:]), weights, groups[0] if groups else None, "a8" in rest)

    @property
    def is_llama_cpp(self) -> bool:
        """Whether llama.cpp runs it."""
        return self.name in BITS

    @property
    def title(self) -> str:
        """The name with what runs it."""
        by = "llama.cpp" if self.is_llama_cpp else "torch" if self.weights is None else "rquant"
        return f"{by} {self.name}"

    @property
    def least(self) -> float:
        """What the check demands."""
        return (LEAST_A8 if self.integer else LEAST)[self.bits]


def made(
    model: LlamaForCausalLM, source: str, specs: list[Spec], cache: Path, length: int, threads: int
) -> Iterator[tuple[Spec, object]]:
    """Each spec with its arm, or with the error that kept it away. Packed weights are shared by the arms that can."""
    weight_only: dict[tuple, LlamaForCausalLM] = {}
    for spec in specs:
        try:
            if spec.is_llama_cpp:
                from .llama_arm import LlamaArm

                path = gguf_file(model, source, spec.name, cache)
                yield spec, LlamaArm(path, length, threads)
                continue
            if spec.weights is None:
                arm = TorchArm(model if spec.name == REFERENCE else bfloat16(model))
            else:
                key = spec.weights, spec.group_size
                if key not in weight_only:
                    weight_only[key] = packed(model, *key)
                plain = weight_only[key]
                other = with_int8_activations(plain) if spec.integer else plain
                arm = TorchArm(other)
            yield spec, arm
        except (ImportError, OSError, RuntimeError) as error:
            yield spec, error


def check(arm, spec: Spec, tokens: Tensor, want: Tensor) -> Check:
    """Compare an arm's logits of `tokens` with `want`, float32's."""
    got = arm.logits(tokens)
    cosine = torch.cosine_similarity(centred(got), centred(want), dim=-1).mean().item()
    top1 = (got.argmax(-1) == want.argmax(-1)).float().mean().item()
    return Check(cosine, top1, spec.least)


def centred(logits: Tensor) -> Tensor:
    """Less their mean: a number added to all logits of a token changes no probability, and SmolLM2's is large."""
    return logits - logits.mean(-1, keepdim=True)
