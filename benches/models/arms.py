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
LEAST = {32: 0.99, 16: 0.99, 8: 0.99, 4: 0.7, 2: -1.0}
"""Bits a weight -> the least cosine between an arm's logits and float32's, both centred, a mean over the tokens.

Random weights suffer most of rounding: 4 bits in groups of 32 leave them 0.77 to 0.79, SmolLM2 0.93."""
LEAST_A8 = {8: 0.98, 4: 0.7, 2: -1.0}
"""The same with int8 activations."""
LEAST_DECODED = 0.95
"""Between an arm's logits of the last token read alone, with the others cached, and of all tokens read at once.

A wrong position or cache gives far less. Rounded activations give 0.99 on SmolLM2: what differs in the last bits of the
first blocks is rounded another way in the next, and grows to the size of the rounding itself.
"""


@dataclass(frozen=True)
class Check:
    """How an arm's logits stand to float32's: mean cosine over tokens, and the share of tokens with the same top."""

    cosine: float
    top1: float
    decoded: float  # the least cosine of its ways to decode to its own prefill

    def error(self, least: float) -> str | None:
        """What is wrong, if something is (a NaN is)."""
        if not self.cosine >= least:
            return f"check failed: cosine {self.cosine:.4f} to float32, least {least}"
        if not self.decoded >= LEAST_DECODED:
            return f"check failed: cosine {self.decoded:.4f} of decode to prefill, least {LEAST_DECODED}"
        return None


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
    """Each spec with its arm, or with the error that kept llama.cpp away. Arms share weights where they can."""
    weight_only: dict[tuple, LlamaForCausalLM] = {}
    for spec in specs:
        if spec.is_llama_cpp:
            yield spec, of_llama_cpp(model, source, spec, cache, length, threads)
        elif spec.weights is None:
            yield spec, TorchArm(model if spec.name == REFERENCE else bfloat16(model))
        else:
            key = spec.weights, spec.group_size
            if key not in weight_only:
                weight_only[key] = packed(model, *key)
            plain = weight_only[key]
            yield spec, TorchArm(with_int8_activations(plain) if spec.integer else plain)


def of_llama_cpp(
    model: LlamaForCausalLM, source: str, spec: Spec, cache: Path, length: int, threads: int
) -> object:
    """The arm, or the error if llama.cpp is not there or cannot do it: everything else is measured without it."""
    try:
        from .llama_arm import LlamaArm

        return LlamaArm(gguf_file(model, source, spec.name, cache), length, threads)
    except (ImportError, OSError, RuntimeError) as error:
        return error


def check(arm, tokens: Tensor, want: Tensor) -> Check:
    """Compare an arm's logits of `tokens` with `want`, float32's, and its ways to decode with one another."""
    got = arm.logits(tokens)
    top1 = (got.argmax(-1) == want.argmax(-1)).float().mean().item()
    decoded = min(cosine(last, got[-1]).item() for last in arm.decoded(tokens))
    return Check(cosine(got, want).mean().item(), top1, decoded)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of logits `[..., vocabulary]`, less their mean: what is added to all of a token's changes no probability."""
    return torch.cosine_similarity(*(x - x.mean(-1, keepdim=True) for x in (a, b)), dim=-1)
