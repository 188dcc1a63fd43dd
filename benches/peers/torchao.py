"""torchao in eager mode, at the settings that have a CPU form."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from . import PER_CHANNEL, Arm, Kind, Layer
from .ours import linear_of, modules


def config(kind: Kind, group: int):
    from torchao import quantization as ao

    if kind.bits == 8:
        if kind.integer:
            return ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
        return ao.Int8WeightOnlyConfig(set_inductor_config=False)
    settings = {"weight_dtype": getattr(torch, f"int{kind.bits}")}
    if kind.integer:
        return ao.Int8DynamicActivationIntxWeightConfig(**settings, weight_granularity=ao.PerGroup(group))
    return ao.IntxWeightOnlyConfig(**settings, granularity=ao.PerGroup(group))


def quantized(kind: Kind, group: int, weight: Tensor, count: int) -> list[Layer]:
    from torchao.quantization import quantize_

    model = torch.nn.Sequential(linear_of(weight))
    quantize_(model, config(kind, group))
    return modules(model[0], count, None)


def arms(kind: Kind) -> Iterator[Arm]:
    group = PER_CHANNEL if kind.bits == 8 else 64
    name = f"torchao-int{kind.bits}" + (f"-g{group}" if group else "")
    yield Arm(name, group, partial(quantized, kind, group), "eager")
