"""The tensors that a frozen layer holds: panels on CPU, canonical tensors on any other device; from one to the other."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils.weak import WeakIdKeyDictionary

from .. import _native, _ops
from .._native import QMatrix
from ..scheme import Scheme

PANELS = "_panels"
CANONICAL = ("weight_packed", "weight_scale", "weight_zero_point")
NAMES = (PANELS, *CANONICAL)
Held = dict[str, Tensor]

# Where a weight went when it was converted: tied layers are converted one after the other and must meet again.
_converted: WeakIdKeyDictionary = WeakIdKeyDictionary()


def quantize(weight: Tensor, scheme: Scheme) -> QMatrix:
    """Canonical form of a float weight `[n, k]`, on weight's device; computed on the CPU, so the same everywhere.

    Raises NotFinite for NaN or infinity.
    """
    source = weight.detach().to("cpu").contiguous()
    q = _native.quantize(source, scheme.bits, scheme.group_size, scheme.symmetric)
    return QMatrix(*(t if t is None else t.to(weight.device) for t in q[:3]), *q[3:])


def empty(shape: tuple[int, int], scheme: Scheme) -> QMatrix:
    """A canonical weight on the meta device: sizes without values."""
    n, k = shape
    groups = (n, scheme.groups(k))
    codes = torch.empty((n, -(-k * scheme.bits // 32) * 4), dtype=torch.uint8, device="meta")
    scale = torch.empty(groups, dtype=torch.float32 if scheme.per_channel else torch.float16, device="meta")
    zero = None
    if not scheme.symmetric:
        zero = torch.empty(groups, dtype=getattr(torch, scheme.zero_point_dtype), device="meta")
    return QMatrix(codes, scale, zero, k, scheme.bits, scheme.group_size)


def hold(q: QMatrix, device: torch.device, panels: Tensor | None = None) -> Held:
    """What a layer on `device` holds for `q`. `panels` are overwritten if they have the right size, so ties stay."""
    if device.type == "cpu":
        packed = _native.pack(QMatrix(*(t if t is None else t.contiguous() for t in q[:3]), *q[3:]), panels)
        if packed is panels:
            increment_version(panels)
        return {PANELS: packed}
    tensors = zip(CANONICAL, q[:3], strict=True)
    return {name: tensor.to(device) for name, tensor in tensors if tensor is not None}


def canonical(held: Held, cols: int, scheme: Scheme) -> QMatrix:
    """The weight in canonical form; new tensors where panels are held."""
    if PANELS in held:
        return _native.unpack(held[PANELS])._replace(group_size=scheme.group_size)
    return QMatrix(*(held.get(name) for name in CANONICAL), cols, scheme.bits, scheme.group_size)


def dequantize(held: Held, shape: tuple[int, int], scheme: Scheme, dtype: torch.dtype) -> Tensor:
    """The float weight `[n, k]`."""
    # float64 and the like are not the kernels': exact from float32
    computed = dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float32
    if PANELS in held:
        return _ops.dequantize(held[PANELS], *shape, computed).to(dtype)  # type: ignore[no-any-return]
    return _ops.dequantize_canonical(*canonical(held, shape[1], scheme), computed).to(dtype)  # type: ignore[no-any-return]


def convert(held: Held, cols: int, scheme: Scheme, device: torch.device) -> Held:
    """The same weight for `device`. Layers that held the same tensors get the same tensors."""
    source = next(iter(held.values()))
    if source.is_meta and device.type != "meta":  # `to_empty`: values come later, by load_state_dict
        moved = {name: torch.empty_like(tensor, device=device) for name, tensor in held.items()}
        return _meet(source, device, moved)
    return _meet(source, device, None) or _meet(source, device, hold(canonical(held, cols, scheme), device))


def _meet(source: Tensor, device: torch.device, moved: Held | None) -> Held:
    """The tensors that `source` became on `device`, if they live unchanged; else note `moved` as them."""
    target, refs = _converted.get(source, (None, {}))
    known: dict[str, Any] = {name: (ref(), version) for name, (ref, version) in refs.items()}
    if target == device and known and all(t is not None and t._version == v for t, v in known.values()):
        return {name: tensor for name, (tensor, _) in known.items()}
    if moved:
        refs = {name: (weakref.ref(tensor), tensor._version) for name, tensor in moved.items()}
        _converted[source] = device, refs
    return moved or {}


def repacked(held: Held, cols: int, scheme: Scheme) -> Held:
    """The same weight in panels that this machine's kernel reads."""
    if PANELS in held and not _native.is_native(held[PANELS]):
        return convert(held, cols, scheme, torch.device("cpu"))
    return held


def checked(given: Held, prefix: str, shape: tuple[int, int], scheme: Scheme) -> QMatrix:
    """Stored tensors as a weight. Raises ValueError, naming the tensor, for a wrong shape, dtype or value."""
    want = empty(shape, scheme)
    for name, like in zip(CANONICAL, want[:3], strict=True):
        if like is None:
            continue
        tensor = given[name]
        if tensor.shape != like.shape:
            raise ValueError(f"{prefix}{name}: expected shape {tuple(like.shape)}, got {tuple(tensor.shape)}")
        dtypes = {like.dtype, torch.float32} if name == "weight_scale" else {like.dtype}
        if tensor.dtype not in dtypes:
            names = " or ".join(str(dtype) for dtype in sorted(dtypes, key=str))
            raise ValueError(f"{prefix}{name}: expected {names}, got {tensor.dtype}")
    scale, zero = given["weight_scale"], given.get("weight_zero_point")
    if not scale.is_meta:
        _check_values(
            f"{prefix}weight_scale", scale, scale.isfinite() & (scale > 0), "positive finite numbers"
        )
        if zero is not None and zero.dtype == torch.float16:
            _check_values(f"{prefix}weight_zero_point", zero, zero.isfinite(), "finite numbers")
        elif zero is not None:
            most = 2**scheme.bits - 1
            _check_values(f"{prefix}weight_zero_point", zero, zero <= most, f"integers from 0 to {most}")
    return QMatrix(given["weight_packed"], scale, zero if want.zero_point is not None else None, *want[3:])


def _check_values(name: str, tensor: Tensor, good: Tensor, expected: str) -> None:
    if not good.all():
        at = (~good).nonzero()[0].tolist()
        raise ValueError(f"{name}: expected {expected}, got {tensor[tuple(at)].item()} at {at}")
