"""What torch has itself: dynamic quantization (two engines), `_int_mm`, and its packed weight-only products."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from . import PER_CHANNEL, Arm, Kind, Layer
from .ours import linear_of, modules
from .rounding import round_weight


def dynamic(engine: str, weight: Tensor, count: int) -> list[Layer]:
    """`quantize_dynamic`, a scale a channel: activations get one scale a tensor."""
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    torch.backends.quantized.engine = engine
    float_model = torch.nn.Sequential(linear_of(weight))
    module = quantize_dynamic(float_model, {torch.nn.Linear: per_channel_dynamic_qconfig})[0]
    assert type(module) is torch.ao.nn.quantized.dynamic.Linear, type(module)
    return modules(module, count, weight.numel() + 4 * weight.shape[0])


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 codes [n, k] and scales [n]."""
    codes, scale, _ = round_weight(weight, 8, PER_CHANNEL, True)
    return (codes ^ 128).view(torch.int8).flatten(1), scale.flatten()


def int_mm(weight: Tensor, count: int) -> list[Layer]:
    codes, scale = int8_rows(weight)

    def layer(codes: Tensor) -> Layer:
        transposed = codes.clone().T

        def run(x: Tensor) -> Tensor:
            x_scale = x.abs().amax(1, keepdim=True).div_(127)
            x_codes = (x / x_scale).round_().to(torch.int8)
            return torch._int_mm(x_codes, transposed).float().mul_(x_scale).mul_(scale)

        return Layer(lambda x: partial(run, x), codes.nbytes + scale.nbytes)

    return [layer(codes) for _ in range(count)]


def int8_pack(weight: Tensor, count: int) -> list[Layer]:
    codes, scale = int8_rows(weight)

    def layer(codes: Tensor) -> Layer:
        return Layer(
            lambda x: partial(torch._weight_int8pack_mm, x, codes, scale), codes.nbytes + scale.nbytes
        )

    return [layer(codes.clone()) for _ in range(count)]


def int4_pack(group: int, weight: Tensor, count: int) -> list[Layer]:
    """(code - 8) * scale + offset, in bfloat16 throughout: converting float32 x is not charged to it."""
    codes, scale, zero = round_weight(weight, 4, group, False)
    offset = (8 - zero.float()) * scale
    scales = torch.stack([scale, offset], -1).transpose(0, 1).contiguous().bfloat16()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.flatten(1).int(), 1)

    def layer(packed: Tensor) -> Layer:
        def bind(x: Tensor):
            return partial(torch.ops.aten._weight_int4pack_mm_for_cpu, x.bfloat16(), packed, group, scales)

        return Layer(bind, packed.nbytes + scales.nbytes)

    return [layer(packed.clone()) for _ in range(count)]


def arms(kind: Kind) -> Iterator[Arm]:
    if kind.bits == 8 and kind.integer:
        for engine in ("x86", "onednn"):
            yield Arm(f"torch-dynamic-{engine}", PER_CHANNEL, partial(dynamic, engine))
        yield Arm(
            "torch-int_mm", PER_CHANNEL, int_mm, "activations are quantized in eager operators around it"
        )
    if kind.bits == 8 and not kind.integer:
        yield Arm("torch-int8pack", PER_CHANNEL, int8_pack)
    if kind.bits == 4 and not kind.integer:
        for group in (32, 64, 128):
            yield Arm(f"torch-int4pack-g{group}", group, partial(int4_pack, group), dtype="bfloat16")
