"""Casts to float16 and bfloat16 without torch: numpy has no bfloat16, which is here its bits."""

import numpy as np

from ._native import BFLOAT16, Array, NotFinite
from .qtypes import QType


class TooLarge(NotFinite):
    """A finite number at flat index `index` that would be infinite in the type that it is cast to."""

    def __init__(self, index: int, qtype: QType, value: float) -> None:
        super().__init__(index)
        self.name, self.value, self.largest = qtype.name[1:], value, qtype.largest

    def named(self, name: str, shape: tuple[int, ...]) -> ValueError:
        """The error for the user: `weight: expected at most 65504 in magnitude for float16, got 70000.0 at [3, 5]`."""
        at = [int(i) for i in np.unravel_index(self.index, shape)]
        return ValueError(
            f"{name}: expected at most {self.largest:g} in magnitude for {self.name}, got {self.value} at {at}; "
            "bfloat16 holds it, or leave this layer float"
        )


def widen(x: Array) -> Array:
    """A float numpy array as float32, exactly; a `BFLOAT16` one is read as such."""
    if x.dtype == BFLOAT16:
        return (x.view("<u2").astype("<u4") << 16).view("<f4")
    return x.astype("<f4", copy=False)


def cast(x: Array, qtype: QType) -> Array:
    """Finite `x` rounded to nearest, ties to even, as torch's `to` does. Raises TooLarge."""
    wide = widen(x)
    if qtype.name == "qfloat16":
        with np.errstate(over="ignore"):
            made = wide.astype("<f2")
        infinite = np.isinf(made)
    else:
        bits = wide.view("<u4").astype("<u8")  # wider, as the sum may carry
        made = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
        infinite = made & 0x7FFF == 0x7F80
    if infinite.any():
        at = int(infinite.reshape(-1).nonzero()[0][0])
        raise TooLarge(at, qtype, float(wide.reshape(-1)[at]))
    return made if qtype.name == "qfloat16" else made.view(BFLOAT16)
