"""A weight's fake quantization by scales that learn, and its gradients: of any device, codes are the CPU's as everywhere."""

import math

import torch
from torch import Tensor

from .. import _native
from . import reference


def stored(scale: Tensor, groups: tuple[int, int], group_size: int) -> Tensor:
    """`scale` (float32, of a shape that expands to `groups`) as a file has it: float16 of groups, unless one is beyond its
    normal range.
    """
    scale = scale.expand(groups).contiguous()
    if group_size == -1:
        return scale
    half, normal = scale.half(), torch.finfo(torch.float16)
    return half if bool(((half >= normal.tiny) & (half <= normal.max)).all()) else scale


def _stored(scale: Tensor, weight: Tensor, group_size: int) -> Tensor:
    n, k = weight.shape
    return stored(scale, (n, 1 if group_size == -1 else -(-k // group_size)), group_size)


def fake_quantize_learned(
    weight: Tensor, scale: Tensor, zero: Tensor | None, kind: int, group_size: int
) -> Tensor:
    """`weight` as its codes read back, of its dtype."""
    q = encode(weight, _stored(scale, weight, group_size), zero, kind, group_size)
    if weight.is_cpu:
        return _native.dequantize(q, torch.empty(weight.shape, dtype=weight.dtype))  # type: ignore[no-any-return]
    return reference.dequantize_canonical(q.map(lambda t: t.to(weight.device)), weight.dtype)


def encode(weight: Tensor, scale: Tensor, zero: Tensor | None, kind: int, group_size: int) -> _native.QMatrix:
    """Its codes under stored scales, on the CPU. Raises ValueError for NaN or infinity."""
    here, given, zeros = (t if t is None else t.cpu().contiguous() for t in (weight, scale, zero))
    try:
        return _native.encode(here, given, zeros, kind, group_size)  # type: ignore[arg-type]
    except _native.NotFinite as bad:
        raise bad.named("weight", tuple(weight.shape)) from None


def of_scale(x: Tensor, scale: Tensor, zero: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """Whether each code came without clipping (bool), and the derivative of `x̂` to its scale."""
    ratio = x.float() / scale
    steps = ratio.round() + zero
    inside = (steps >= lowest) & (steps <= highest)
    return inside, steps.clamp(lowest, highest) - zero - torch.where(inside, ratio, 0.0)


def fake_quantize_learned_backward(
    grad: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None, kind: int, group_size: int
) -> tuple[Tensor, Tensor]:
    """Gradients to the weight and to `scale`, each of its shape."""
    n, k = weight.shape
    half = 1 << (kind - 1)
    kept = _stored(scale, weight, group_size)
    s = reference.expand(kept.float(), k, group_size)
    z = reference.expand(reference.zeros_of(kept, zero, kind), k, group_size)
    inside, derivative = of_scale(weight, s, z, -half + (zero is None), half - 1)
    size = max(k, 1) if group_size == -1 else group_size
    sums = torch.nn.functional.pad(grad.float() * derivative, (0, -k % size)).unflatten(1, (-1, size))
    to_scale = sums.sum(-1).sum_to_size(scale.shape)
    qmax = half - 1 if zero is None else 2 * half - 1
    return grad * inside, to_scale / math.sqrt(max(n * k // scale.numel(), 1) * qmax)
