"""optimum-quanto's qlinear, weight-only: on a CPU it multiplies in float."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from . import PER_CHANNEL, Arm, Kind, Layer
from .ours import linear_of, modules


def quantized(bits: int, weight: Tensor, count: int) -> list[Layer]:
    from optimum import quanto

    model = torch.nn.Sequential(*(linear_of(weight) for _ in range(count)))
    quanto.quantize(model, weights=getattr(quanto, f"qint{bits}"))
    quanto.freeze(model)
    return [layer for module in model for layer in modules(module, 1, None)]


def arms(kind: Kind) -> Iterator[Arm]:
    if not kind.integer:
        group = PER_CHANNEL if kind.bits == 8 else 128
        name = f"quanto-int{kind.bits}" + (f"-g{group}" if group else "")
        yield Arm(name, group, partial(quantized, kind.bits))
