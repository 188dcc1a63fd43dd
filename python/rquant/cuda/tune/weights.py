"""Random operands, made on the device: what they hold does not change a time much, where they lie does."""

import torch
from torch import Tensor

from ..._native import QMatrix

MOST_COPIES = 64


def random_weight(n: int, k: int, bits: int, group_size: int, device: torch.device) -> QMatrix:
    """A symmetric weight `[n, k]`, of a layer's magnitude."""
    row, groups = -(-k * bits // 32) * 4, 1 if group_size == -1 else -(-k // group_size)
    dtype = torch.float32 if groups == 1 else torch.float16
    scale = torch.full((n, groups), 2.0 ** (1 - bits) / k**0.5, dtype=dtype, device=device)
    codes = torch.randint(0, 256, (n, row), dtype=torch.uint8, device=device)
    return QMatrix(codes, scale, None, k, bits, group_size)


def random_weights(
    n: int, k: int, bits: int, group_size: int, device: torch.device, cold_bytes: int
) -> list[QMatrix]:
    """As many as `cold_bytes` hold, two at least, none of the same memory."""
    count = min(max(2, -(-cold_bytes // (n * k * bits // 8))), MOST_COPIES)
    return [random_weight(n, k, bits, group_size, device) for _ in range(count)]


def random_activations(m: int, k: int, arithmetic: str, device: torch.device) -> Tensor:
    """Normal numbers `[m, k]`; of float16 where the product is of int8."""
    return torch.randn(m, k, device=device).to(getattr(torch, arithmetic.replace("int8", "float16")))
