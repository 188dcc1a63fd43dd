"""Scales that several rows have in common: a block of rows and columns is one group."""

from dataclasses import replace

from torch import Tensor
from torch.nn import functional

from .. import optimize
from .._native import QMatrix
from ..scheme import Blocks, Scheme


def in_blocks(weight: Tensor, scheme: Scheme, blocks: Blocks) -> QMatrix:
    """`weight` `[n, k]` in the scheme's canonical form; of `blocks.rows` rows each group has the same scale and zero point.

    They are chosen on the values of a block side by side, as of one group; ragged blocks are filled up with zeros, which
    every range contains. Each row keeps a copy, so that files and kernels need not know.
    """
    (n, k), rows = weight.shape, blocks.rows
    size = max(k, 1) if scheme.per_channel else scheme.group_size
    filled = functional.pad(weight, (0, -k % size, 0, -n % rows))
    side_by_side = filled.unflatten(0, (-1, rows)).unflatten(2, (-1, size)).transpose(1, 2)
    shape = side_by_side.shape[:2]
    group_size = (
        scheme.group_size if scheme.per_channel else rows * size
    )  # what is per channel has float32 scales
    one = replace(scheme, group_size=group_size, optimizer=blocks.by)
    chosen = optimize.choose(side_by_side.flatten(2).flatten(0, 1).contiguous(), one)

    def of_rows(values: Tensor) -> Tensor:
        return values.reshape(shape).repeat_interleave(rows, 0)[:n].contiguous()

    zero = None if chosen.zero_point is None else of_rows(chosen.zero_point)
    return optimize.encode(weight, of_rows(chosen.scale), zero, scheme)
