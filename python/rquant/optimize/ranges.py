"""Optimizers that choose a range a group, in the native module: `S` and an integer `Z` follow from its ends."""

from dataclasses import dataclass

from torch import Tensor

from .. import _native
from .._native import QMatrix
from ..scheme import Scheme


@dataclass(frozen=True)
class MinMax:
    """The whole range: nothing is clipped (Jacob et al. 2018, <https://arxiv.org/abs/1712.05877>)."""

    def __call__(self, weight: Tensor, scheme: Scheme) -> QMatrix:
        """`weight` `[n, k]` in the scheme's canonical form."""
        return _native.quantize(weight, scheme.kind, scheme.group_size, scheme.symmetric, "minmax")


@dataclass(frozen=True)
class AbsMax:
    """`[-a, a]` with `a = max |x|`. Differs from `MinMax` for affine schemes only."""

    def __call__(self, weight: Tensor, scheme: Scheme) -> QMatrix:
        """`weight` `[n, k]` in the scheme's canonical form."""
        return _native.quantize(weight, scheme.kind, scheme.group_size, scheme.symmetric, "absmax")


@dataclass(frozen=True)
class MSE:
    """The part of the range with the least squared error; of no group is it larger than with `MinMax`.

    A grid search over 80 parts from 1 to 0.2 of both ends together and, unless symmetric, then of each end by itself
    (Nagel et al. 2021, <https://arxiv.org/abs/2106.08295>, section 3.1).
    """

    def __call__(self, weight: Tensor, scheme: Scheme) -> QMatrix:
        """`weight` `[n, k]` in the scheme's canonical form."""
        return _native.quantize(weight, scheme.kind, scheme.group_size, scheme.symmetric, "mse")
