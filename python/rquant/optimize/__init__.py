"""Who chooses a weight's scales, zero points and codes: the protocol, the choices by name, and how one is called.

An optimizer of your own is any object that `Optimizer` describes; give it where a name goes. One that needs data (a
Hessian, activations' magnitudes) holds them itself, one object a layer, and is given by `rules`.
"""

import weakref
from typing import Any

import torch
from torch import Tensor

from .. import _native
from .._native import QMatrix
from ..qtypes import qtype_of_kind
from ..scheme import Blocks, Optimizer, Scheme, ZeroPointDtype
from .blocks import in_blocks
from .hqq import HQQ
from .ranges import MSE, AbsMax, MinMax

__all__ = ["HQQ", "MSE", "AbsMax", "MinMax", "Optimizer", "by_arguments", "choose", "encode", "find", "key"]

BY_NAME: dict[str, Optimizer] = {"minmax": MinMax(), "absmax": AbsMax(), "mse": MSE(), "hqq": HQQ()}
# objects that are in use, by the string that stands for them among an op's arguments
_objects: "weakref.WeakValueDictionary[str, Optimizer]" = weakref.WeakValueDictionary()


def key(optimizer: str | Optimizer) -> str:
    """The name of an optimizer, or one that stands for this object as long as it lives."""
    if isinstance(optimizer, str):
        return optimizer
    name = f"{type(optimizer).__name__} {id(optimizer)}"
    _objects[name] = optimizer
    return name


def find(name: str) -> Optimizer:
    """The optimizer of this `key`. Raises ValueError if there is none, as for a loaded layer that had one of the user's."""
    found = BY_NAME.get(name) or _objects.get(name)
    if found is None:
        raise ValueError(f"optimizer: expected one of {', '.join(BY_NAME)} or an object, got {name!r}")
    return found


def choose(weight: Tensor, scheme: Scheme) -> QMatrix:
    """The canonical form of `weight`, floats `[n, k]`, contiguous and on the CPU, by the scheme's optimizer.

    Raises NotFinite for NaN or infinity, ValueError for an optimizer whose answer is not of the scheme.
    """
    optimizer = scheme.optimizer
    found = find(optimizer) if isinstance(optimizer, str) else optimizer
    with torch.no_grad():
        weight = weight.detach()
        q = in_blocks(weight, scheme, found) if isinstance(found, Blocks) else found(weight, scheme)
    if type(found) not in (MinMax, AbsMax, MSE, HQQ):
        _check(q, weight, scheme)
    return q


def by_arguments(weight: Tensor, kind: int, group_size: int, symmetric: bool, name: str) -> QMatrix:
    """`choose` for a scheme as an op's arguments say it; `name` is a `key`."""
    qtype, optimizer = qtype_of_kind(kind), find(name)
    zeros: ZeroPointDtype = getattr(optimizer, "zero_point_dtype", "uint8")
    return choose(weight, Scheme(qtype, symmetric, group_size, zeros, optimizer))


def encode(weight: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: Scheme) -> QMatrix:
    """Codes of `weight` `[n, k]` under scales and zero points `[n, groups]`: what an optimizer of ranges ends with.

    `scale` float32 or float16; `zero_point` None (symmetric), uint8 (the plain Z plus 2**(bits - 1)) or float16 (plain Z).
    """
    return _native.encode(weight, scale, zero_point, scheme.kind, scheme.group_size)


def _check(q: Any, weight: Tensor, scheme: Scheme) -> None:
    """An optimizer is the user's code: what does not fit is named before a kernel reads it."""
    if not isinstance(q, QMatrix):
        raise ValueError(f"optimizer: expected a QMatrix, got {type(q).__name__}")
    rows, cols = weight.shape
    groups = (rows, scheme.groups(cols))
    zeros = None if scheme.symmetric else (groups, getattr(torch, scheme.zero_point_dtype))
    want = ((rows, -(-cols * scheme.bits // 32) * 4), torch.uint8), (groups, q.scale.dtype), zeros
    got = [None if t is None else (tuple(t.shape), t.dtype) for t in q[:3]]
    for name, expected, came in zip(("codes", "scale", "zero_point"), want, got, strict=True):
        if expected != came:
            raise ValueError(f"optimizer: expected {name} of shape and dtype {expected}, got {came}")
    if q[3:] != (cols, scheme.kind, scheme.group_size):
        raise ValueError(
            f"optimizer: expected cols, kind, group_size {(cols, scheme.kind, scheme.group_size)}, got {q[3:]}"
        )
