"""Plain rounding of a weight, for the peers that take integers: shared by them, since it costs more than packing."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Codes(NamedTuple):
    """`(codes - zero) * scale` is about the weight; codes are unsigned, [n, groups, group]."""

    codes: Tensor  # uint8
    scale: Tensor  # float32 [n, groups]
    zero: Tensor  # uint8 [n, groups]; 2 ** (bits - 1) throughout where symmetric


@lru_cache(maxsize=8)
def round_weight(weight: Tensor, bits: int, group: int, symmetric: bool) -> Codes:
    """To `bits` in groups of `group` along k (0: a row). Raises ValueError where the group does not divide k."""
    n, k = weight.shape
    if k % (group or k):
        raise ValueError(f"k = {k} is not a multiple of the group size {group}")
    groups = weight.view(n, -1, group or k)
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    least, most = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if symmetric:  # the largest magnitude becomes -middle exactly, whatever its sign
        scale = torch.where(-least > most, least, most) / -middle
        zero = torch.full_like(scale, middle)
    else:
        scale = (most - least) / top
        zero = (-least / scale).round()
    codes = (groups / scale.unsqueeze(-1)).round_().add_(zero.unsqueeze(-1)).clamp_(0, top)
    return Codes(codes.to(torch.uint8), scale, zero.to(torch.uint8))


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of 8, 4 or 2 bits as bytes along the last axis, the first code in the lowest bits; short rows padded with 0."""
    each = 8 // bits
    short = -codes.shape[-1] % each
    if short:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, short)])
    parts = codes.reshape(*codes.shape[:-1], -1, each)
    packed = parts[..., 0].copy()
    for i in range(1, each):
        packed |= parts[..., i] << (bits * i)
    return packed
