"""auto-round-lib: Intel's BestLA kernels. They run on OpenMP's threads, torch's own.

Version 0.16 takes its AVX2 float kernel on any processor that is not Intel's, whatever compute type is asked for; on
Intel's it takes VNNI or AMX. bench_linear.py records where activations are not quantized (`rounds_x`).
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from . import PER_CHANNEL, Arm, Kind, Layer
from .rounding import round_weight


def packed(kind: Kind, group: int, symmetric: bool, weight: Tensor, count: int) -> list[Layer]:
    import auto_round_kernel as ark

    n, k = weight.shape
    each = group or k
    codes, scale, zero = round_weight(weight, kind.bits, group, symmetric)
    middle = 2 ** (kind.bits - 1)
    signed = (codes.flatten(1).to(torch.int16) - middle).to(torch.int8).T.contiguous()
    zeros = (zero.to(torch.int16) - middle).to(torch.int8).T.contiguous()
    types = ("int8" if kind.integer else "fp32", f"int{kind.bits}", "fp32", not symmetric)
    blob = ark.repack_quantized_weight(signed, scale.T.contiguous(), zeros, each, *types)

    def layer(blob: Tensor) -> Layer:
        def bind(x: Tensor):
            y, no_bias = torch.empty(len(x), n), torch.empty(0)
            return partial(ark.woqgemm, x, blob, no_bias, n, k, each, *types, out=y)

        return Layer(bind, blob.nbytes)

    return [layer(blob.clone()) for _ in range(count)]


def arms(kind: Kind) -> Iterator[Arm]:
    for group in (PER_CHANNEL, 128) if kind.bits == 8 else (32, 64, 128):
        for symmetric in (True, False) if group == 128 and kind.bits < 8 else (True,):
            name = f"ark-int{kind.bits}{'' if symmetric else '-asym'}" + (f"-g{group}" if group else "")
            yield Arm(name, group, partial(packed, kind, group, symmetric))
