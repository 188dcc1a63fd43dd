"""Step C: the same weight in every library that multiplies it, checked, then timed on one clock; ours beside them."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from operands import error, product
from speed import CHANNELS, Timer, Unit
from torch import Tensor, nn

from rquant import _ops, optimize
from rquant.cuda.tune import COLD_BYTES

SHAPES = ((4096, 4096), (14336, 4096), (8192, 8192))
ROWS = (1, 16, 64, 512, 2048)
TOLERANCE = {16: 1e-2, 8: 0.03, 4: 0.16, 2: 0.7}
"""Relative errors that plain rounding of normal weights to so many bits stays below."""
MOST_COPIES = 16
Make = Callable[[Tensor, Tensor], Callable[[], Tensor]]
"""Float16 weight `[n, k]` and x `[m, k]` to a call that multiplies them."""


def units(device: torch.device, small: bool, timer: Timer | None = None) -> Iterator[Unit]:
    """A unit for each arm, shape and number of rows."""
    if timer is None:
        from rquant.cuda.timing import GraphTimer

        timer = GraphTimer()
    shapes, counts = (((256, 256),), (1, 32)) if small else (SHAPES, ROWS)
    for shape in shapes:
        for name, (bits, make) in ARMS.items():
            for m in counts:
                arguments = (device, timer, make, bits, shape, m)
                run = required if name.startswith("rquant") else measured
                yield f"{name} {shape[0]}x{shape[1]} m={m}", lambda run=run, a=arguments: run(*a)


def required(*arguments: Any) -> dict:
    """`measured` of ours, which may not be absent."""
    record = measured(*arguments)
    return (
        record
        if "us" in record
        else {**record, "ok": False, "error": record.get("error") or record["absent"]}
    )


def measured(
    device: torch.device, timer: Timer, make: Make, bits: int, shape: tuple[int, int], m: int
) -> dict:
    """Microseconds of a call, or why there are none."""
    n, k = shape
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(m)).half().to(device)
    count = min(max(2, math.ceil(COLD_BYTES / (n * k * bits / 8))), MOST_COPIES)
    generator = torch.Generator(device=device).manual_seed(0)
    weight = (torch.randn(n, k, generator=generator, device=device) / k**0.5).half()
    with torch.no_grad():
        try:
            calls = [make(weight, x) for _ in range(count)]
            got = calls[0]()
        except Exception as absent:  # not installed, or not for this device, size or number of rows
            return {"ok": None, "absent": f"{type(absent).__name__}: {absent}".splitlines()[0][:120]}
        off = error(got[:, :CHANNELS], product(x, weight[:CHANNELS].double(), None))
        if not off <= TOLERANCE[bits]:
            return {"ok": None, "error": f"relative error {off:.3g}"}
        return {"us": timer("peer", calls), "error": off, "copies": count}


def torch_mm(dtype: torch.dtype) -> Make:
    def make(weight: Tensor, x: Tensor) -> Callable[[], Tensor]:
        weight, x = weight.to(dtype, copy=True), x.to(dtype)
        return lambda: x @ weight.T

    return make


def int_mm(weight: Tensor, x: Tensor) -> Callable[[], Tensor]:
    """Torch's product of int8, with the scales around it as one would write them."""
    scale = weight.float().abs().amax(1) / 127
    codes = (weight / scale[:, None]).round().to(torch.int8)

    def call() -> Tensor:
        most = x.abs().amax(1, keepdim=True).float() / 127
        sums = torch._int_mm((x / most).round().to(torch.int8), codes.T)
        return (sums * most * scale).half()

    return call


def int4pack_mm(weight: Tensor, x: Tensor) -> Callable[[], Tensor]:
    """Torch's int4 product, bfloat16, groups of 128: w = (q - 8) s + z."""
    n, k = weight.shape
    groups = weight.float().reshape(n, k // 128, 128)
    lo, hi = groups.amin(-1), groups.amax(-1)
    scale = (hi - lo) / 15
    codes = ((groups - lo[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.uint8).reshape(n, k)
    packed = torch._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], 8)
    parameters = torch.stack([scale, lo + 8 * scale], -1).bfloat16().transpose(0, 1).contiguous()
    wide = x.bfloat16()
    return lambda: torch._weight_int4pack_mm(wide, packed, 128, parameters)


def ours(kind: int, group_size: int, integer: bool) -> Make:
    def make(weight: Tensor, x: Tensor) -> Callable[[], Tensor]:
        symmetric = kind == 8
        q = optimize.by_arguments(weight.float().cpu(), kind, group_size, symmetric, "minmax")
        codes, scale, zero, *sizes = q.map(lambda t: t.to(x.device))
        return lambda: _ops.linear_canonical(x, codes, scale, zero, None, *sizes, integer)

    return make


def bitsandbytes_int8(weight: Tensor, x: Tensor) -> Callable[[], Tensor]:
    import bitsandbytes as bnb  # type: ignore[import-not-found]

    layer = bnb.nn.Linear8bitLt(*reversed(weight.shape), bias=False, has_fp16_weights=False, threshold=0.0)
    layer.load_state_dict({"weight": weight.cpu()})
    return _called(layer.to(x.device), x)


def bitsandbytes_nf4(weight: Tensor, x: Tensor) -> Callable[[], Tensor]:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(
        *reversed(weight.shape), bias=False, compute_dtype=torch.float16, quant_type="nf4"
    )
    layer.load_state_dict({"weight": weight.cpu()})
    return _called(layer.to(x.device), x)


def torchao(configuration: str, **options: Any) -> Make:
    def make(weight: Tensor, x: Tensor) -> Callable[[], Tensor]:
        from torchao import quantization  # type: ignore[import-not-found]

        layer = nn.Linear(*reversed(weight.shape), bias=False, device=x.device, dtype=torch.bfloat16)
        layer.weight.data.copy_(weight)
        quantization.quantize_(layer, getattr(quantization, configuration)(**options))
        return _called(layer, x.bfloat16())

    return make


def _called(layer: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: layer(x)


ARMS: dict[str, tuple[int, Make]] = {
    "torch float16": (16, torch_mm(torch.float16)),
    "torch bfloat16": (16, torch_mm(torch.bfloat16)),
    "rquant int8": (8, ours(8, -1, False)),
    "rquant int4 g128": (4, ours(4, 128, False)),
    "rquant int2 g64": (2, ours(2, 64, False)),
    "rquant int8 a8": (8, ours(8, -1, True)),
    "rquant int4 a8 g128": (4, ours(4, 128, True)),
    "torch _int_mm": (8, int_mm),
    "torch _weight_int4pack_mm g128": (4, int4pack_mm),
    "bitsandbytes int8": (8, bitsandbytes_int8),
    "bitsandbytes nf4": (4, bitsandbytes_nf4),
    "torchao int8": (8, torchao("Int8WeightOnlyConfig")),
    "torchao int4 g128": (4, torchao("Int4WeightOnlyConfig", group_size=128)),
    "torchao int8 a8": (8, torchao("Int8DynamicActivationInt8WeightConfig")),
}
"""Bits of a weight, and what makes the call."""
