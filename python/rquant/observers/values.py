"""From tensors as they come to what the native module reads, and from its answers to ranges."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from .. import _native
from ..qtypes import INTEGERS, QType, qtype_of
from .observer import Range, State

Result = TypeVar("Result")
_NATIVE = (torch.float32, torch.float16, torch.bfloat16)


class NotFinite(ValueError):
    """NaN or infinity at `index` of what was to be observed."""

    def __init__(self, index: list[int], name: str = "x") -> None:
        super().__init__(f"{name}: expected finite numbers, got NaN or infinity at {index}")
        self.index = index


def watch(x: Tensor, look: Callable[[Tensor], Result]) -> Result:
    """`look` at all elements of x as one row, in no particular order.

    Raises ValueError for a tensor that is not of floats, NotFinite.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: expected a tensor of floats, got {got}")
    x = x.detach()
    x = x if x.dtype in _NATIVE else x.float()
    # in memory's own order, in which what is dense (channels last, transposed) needs no copy
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    try:
        return look(x.permute(order).cpu().contiguous().reshape(-1))
    except _native.NotFinite:
        raise NotFinite((~x.isfinite()).nonzero()[0].tolist()) from None


def largest_code(qtype: QType | str) -> int:
    """`qmax`. Raises ValueError for a type that is not of integers."""
    return qtype_of(qtype, "qtype", INTEGERS).qmax


def widened(extent: Range | None, symmetric: bool) -> Range:
    """The range with 0 in it, and as far below as above if symmetric. Raises ValueError for None: nothing was seen."""
    if extent is None:
        raise ValueError("range: expected an observer that has seen values, got one that has seen none")
    lo, hi = min(extent[0], 0.0), max(extent[1], 0.0)
    end = max(-lo, hi)
    return (-end, end) if symmetric else (lo, hi)


def numbers(state: State, names: tuple[str, ...], of: str) -> list[float]:
    """The scalars of a state. Raises ValueError for missing or further names."""
    if set(state) != set(names):
        raise ValueError(f"state: expected {', '.join(names)} of {of}, got {', '.join(sorted(state))}")
    return [state[name].item() for name in names]


def scalar(value: float) -> Tensor:
    """float64, which holds every float32 and all counts there will be."""
    return torch.tensor(value, dtype=torch.float64)
