"""The layers that bench_linear.py times: ours, torch's float32 one, and every peer's, behind one small protocol.

An `Arm` packs a float32 weight as one library does it at one setting. What it raises is recorded as its absence, with
the message. All compute `x @ weight.T`, no bias, for float32 x or, where the arm says so, bfloat16; each is prepacked and takes the input where it lies,
and writes to an output allocated beforehand where its interface has such a thing.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

PER_CHANNEL = 0
FAMILIES = ("torch_native", "onnx", "openvino", "auto_round", "torchao", "quanto", "bnb")


@dataclass
class Layer:
    """One packed copy of a weight."""

    bind: Callable[[Tensor], Callable[[], Tensor]]  # x -> a call that runs the layer on x
    bytes: int | None = None  # of the packed weight with its scales, where the library tells
    keep: list = field(default_factory=list)  # what must live as long as the layer


@dataclass(frozen=True)
class Arm:
    """One library at one setting."""

    name: str
    group: int  # weights along k that share a scale, or PER_CHANNEL
    pack: Callable[[Tensor, int], list[Layer]]  # (weight [n, k], copies) -> that many layers
    note: str = ""
    dtype: str = "float32"  # of x and the output

    @property
    def ours(self) -> bool:
        return self.name.startswith("rquant")


@dataclass(frozen=True)
class Kind:
    """What is compared with what: the bits of a weight, and whether activations are quantized to int8 as well."""

    bits: int
    integer: bool
    threads: int

    @property
    def name(self) -> str:
        return f"int{self.bits}-{'integer' if self.integer else 'float'}"


def arms_of(kind: Kind, part: list[str] | None = None) -> list[Arm]:
    """float32, rquant's arms, the peers'; with `part` the float32 one and those whose name has one of its words."""
    found = []
    for family in ("ours", *FAMILIES):
        found += importlib.import_module(f"peers.{family}").arms(kind)
    return [a for a in found if part is None or a.name == "float32" or any(word in a.name for word in part)]
