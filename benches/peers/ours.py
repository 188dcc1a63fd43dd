"""torch's float32 layer, and rquant's at every scheme of a class."""

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import rquant

from . import PER_CHANNEL, Arm, Kind, Layer

GROUPS = {8: (PER_CHANNEL,), 4: (32, 64, 128), 2: (32, 64)}


def linear_of(weight: Tensor) -> torch.nn.Linear:
    """A float32 layer around the very tensor."""
    linear = torch.nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return linear


def modules(
    module: torch.nn.Module, count: int, bytes: int | None, dtype: torch.dtype = torch.float32
) -> list[Layer]:
    """A torch module and its twins as layers. Converting x is not charged to them."""
    twins = [module, *(copy.deepcopy(module) for _ in range(count - 1))]

    def bind(twin: torch.nn.Module, x: Tensor):
        x = x.to(dtype)
        return lambda: twin(x)

    return [Layer(partial(bind, twin), bytes) for twin in twins]


def float32(weight: Tensor, count: int) -> list[Layer]:
    return modules(linear_of(weight), count, weight.nbytes)


def quantized(kind: Kind, group: int, dtype: str, weight: Tensor, count: int) -> list[Layer]:
    layer = rquant.Linear.from_float(
        linear_of(weight),
        weights=f"int{kind.bits}",
        activations="int8" if kind.integer else None,
        group_size=group or None,
    )
    size = sum(buffer.nbytes for buffer in layer.buffers())
    layers = modules(layer, count, size, getattr(torch, dtype))
    layers[0].keep.append(layer)  # bench_linear.py checks it against its own integers
    return layers


def arms(kind: Kind) -> Iterator[Arm]:
    yield Arm("float32", PER_CHANNEL, float32)
    for group in GROUPS[kind.bits]:
        name = f"rquant-int{kind.bits}" + (f"-g{group}" if group else "")
        yield Arm(name, group, partial(quantized, kind, group, "float32"))
        if not kind.integer:
            brain = partial(quantized, kind, group, "bfloat16")
            yield Arm(f"{name}-bf16", group, brain, dtype="bfloat16")
