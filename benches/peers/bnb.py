"""bitsandbytes: its int8 layer, and NF4 in blocks of 64."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from . import PER_CHANNEL, Arm, Kind, Layer
from .ours import modules


def int8(weight: Tensor, count: int) -> list[Layer]:
    import bitsandbytes as bnb

    n, k = weight.shape
    module = bnb.nn.Linear8bitLt(k, n, bias=False, has_fp16_weights=False)
    module.weight = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    return modules(module.to("cpu").eval(), count, None)


def nf4(dtype: torch.dtype, weight: Tensor, count: int) -> list[Layer]:
    import bitsandbytes as bnb

    n, k = weight.shape
    module = bnb.nn.Linear4bit(k, n, bias=False, quant_type="nf4", compute_dtype=dtype)
    weight = weight.to(dtype, copy=True)
    module.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=module)
    return modules(module.to("cpu").eval(), count, None, dtype)


def arms(kind: Kind) -> Iterator[Arm]:
    if kind.bits == 8 and kind.integer:
        yield Arm("bnb-int8", PER_CHANNEL, int8)
    if kind.bits == 4 and not kind.integer:
        yield Arm("bnb-nf4-g64", 64, partial(nf4, torch.float32))
        yield Arm("bnb-nf4-g64-bf16", 64, partial(nf4, torch.bfloat16), dtype="bfloat16")
