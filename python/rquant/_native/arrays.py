"""numpy arrays and torch tensors as the native module takes them: addresses in CPU memory, checked, and codes of dtypes."""

import math
import sys
from functools import lru_cache
from typing import Any

import numpy as np

from .. import _rquant

Array = Any  # numpy.ndarray or torch.Tensor; torch may not be installed
BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""numpy has no bfloat16; an array of this dtype is taken for one."""
_FLOATS = {"float32": _rquant.FLOAT32, "float16": _rquant.FLOAT16, "bfloat16": _rquant.BFLOAT16}
_FLOATS[str(BFLOAT16)] = _rquant.BFLOAT16
_known: dict[Any, int] = {}


class NotFinite(ValueError):
    """NaN or infinity at flat index `index` of an input; who knows its name and shape says so."""

    def __init__(self, index: int) -> None:
        super().__init__(f"x: NaN or infinity at flat index {index}")
        self.index = index

    def named(self, name: str, shape: tuple[int, ...]) -> ValueError:
        """The error for the user: `weight: expected finite numbers, got NaN or infinity at [3, 5]`."""
        at = [int(i) for i in np.unravel_index(self.index, shape)]
        return ValueError(f"{name}: expected finite numbers, got NaN or infinity at {at}")


def dtype_code(array: Array, argument: str) -> int:
    """The native code of a float dtype, numpy's or torch's: one look-up after the first time."""
    code = _known.get(array.dtype)
    if code is None:
        code = _FLOATS.get(str(array.dtype).removeprefix("torch."))
        if code is None:
            raise ValueError(f"{argument}: expected dtype float32, float16 or bfloat16, got {array.dtype}")
        _known[array.dtype] = code
    return code


def address_of(array: Array, argument: str) -> int:
    """Of the first element, once the array is contiguous and in CPU memory."""
    if isinstance(array, np.ndarray):
        if not array.flags.c_contiguous:
            raise ValueError(f"{argument}: expected a C-contiguous array, got strides {array.strides}")
        return int(array.__array_interface__["data"][0])
    if not array.is_contiguous() or not array.is_cpu:
        raise ValueError(
            f"{argument}: expected a contiguous CPU tensor, got {array.device} with strides {array.stride()}"
        )
    return array.data_ptr()  # type: ignore[no-any-return]


_name = lru_cache(maxsize=64)(lambda dtype: str(dtype).removeprefix("torch."))


def typed(array: Array, argument: str, dtype: str, size: int | None = None) -> int:
    """Address of `array`, once its dtype and number of elements are what the native side will read."""
    if _name(array.dtype) != dtype:
        raise ValueError(f"{argument}: expected dtype {dtype}, got {array.dtype}")
    if size is not None and (count := math.prod(array.shape)) != size:
        raise ValueError(f"{argument}: expected {size} elements, got {count} (shape {tuple(array.shape)})")
    return address_of(array, argument)


def empty(like: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """A new array of the framework that `like` is of; tensors are on the CPU."""
    if isinstance(like, np.ndarray):
        return np.empty(shape, dtype)
    torch = sys.modules["torch"]
    return torch.empty(shape, dtype=getattr(torch, dtype))


def float_matrix(x: Array, argument: str) -> tuple[int, int, int, int]:
    """Address, code of the dtype, rows and columns."""
    if len(x.shape) != 2:
        raise ValueError(f"{argument}: expected 2 dimensions, got shape {tuple(x.shape)}")
    return address_of(x, argument), dtype_code(x, argument), x.shape[0], x.shape[1]
