"""The networks that bench_vision.py times: ours, torch's in float32, and each peer's static int8.

An `Arm` makes of a float network in eval mode, and of pictures to calibrate on, one library's network at its best
setting. What it raises is recorded as its absence, with the message.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

FAMILIES = ("ours", "torch_ao", "onnx_static")

Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Arm:
    """One library at one setting."""

    name: str
    # (float network, calibration pictures, pictures to run on) -> a call that gives their logits
    make: Callable[[nn.Module, Tensor, Tensor], Run]

    @property
    def ours(self) -> bool:
        return self.name.startswith("rquant")


def arms_of(threads: int, part: list[str] | None = None) -> list[Arm]:
    """float32, rquant's arms, the peers'; with `part` the plain float32 one and those whose name has one of its words."""
    found = []
    for family in FAMILIES:
        found += importlib.import_module(f"vision.{family}").arms(threads)
    return [a for a in found if part is None or a.name == "float32" or any(word in a.name for word in part)]
