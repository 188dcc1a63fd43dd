"""The tensors that a frozen layer holds: panels on CPU, canonical tensors on any other device; from one to the other."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils.weak import WeakIdKeyDictionary

from .. import _native, _ops
from .._native import QMatrix
from ..casting import TooLarge
from ..optimize import choose
from ..scheme import Scheme

PANELS = "_panels"
CANONICAL = ("weight_packed", "weight_scale", "weight_zero_point")
NAMES = (PANELS, *CANONICAL)
Held = dict[str, Tensor]

# Where a weight went when it was converted: tied layers are converted one after the other and must meet again.
_converted: WeakIdKeyDictionary = WeakIdKeyDictionary()


def quantize(weight: Tensor, scheme: Scheme) -> QMatrix:
    """Canonical form of a float weight `[n, k]`, on weight's device; computed on the CPU, so the same everywhere.

    Raises NotFinite for NaN or infinity, and for what a cast to float16 would make infinite.
    """
    source = weight.detach().to("cpu").contiguous()
    if scheme.qtype.is_cast:
        return cast(source, scheme).map(lambda t: t.to(weight.device))
    return choose(source, scheme).map(lambda t: t.to(weight.device))


def cast(weight: Tensor, scheme: Scheme) -> QMatrix:
    """`weight` rounded to float16 or bfloat16: `codes` is that tensor, and there are no scales."""
    _native.ranges(weight, -1)
    rounded = weight.to(dtype_of(scheme))
    check_cast(weight, scheme)
    return QMatrix(rounded, None, None, weight.shape[1], scheme.kind, scheme.group_size)


def check_cast(weight: Tensor, scheme: Scheme) -> None:
    """Raise TooLarge for an element of finite `weight` that the scheme's type, where it is a cast, would make infinite."""
    if scheme.qtype.is_cast:
        bad = weight.to(dtype_of(scheme)).isinf()
        if bad.any():
            at = int(bad.reshape(-1).nonzero()[0])
            raise TooLarge(at, scheme.qtype, weight.reshape(-1)[at].item())


def dtype_of(scheme: Scheme) -> torch.dtype:
    """Torch's dtype of a cast."""
    return getattr(torch, scheme.qtype.name[1:])  # type: ignore[no-any-return]


def empty(shape: tuple[int, int], scheme: Scheme) -> QMatrix:
    """A canonical weight on the meta device: sizes without values."""
    n, k = shape
    if scheme.qtype.is_cast:
        floats = torch.empty(shape, dtype=dtype_of(scheme), device="meta")
        return QMatrix(floats, None, None, k, scheme.kind, scheme.group_size)
    groups = (n, scheme.groups(k))
    codes = torch.empty((n, -(-k * scheme.bits // 32) * 4), dtype=torch.uint8, device="meta")
    scale = torch.empty(groups, dtype=torch.float32 if scheme.per_channel else torch.float16, device="meta")
    zero = None
    if not scheme.symmetric:
        zero = torch.empty(groups, dtype=getattr(torch, scheme.zero_point_dtype), device="meta")
    return QMatrix(codes, scale, zero, k, scheme.kind, scheme.group_size)


def hold(q: QMatrix, device: torch.device, groups: int = 1, panels: Tensor | None = None) -> Held:
    """What a layer on `device` holds for `q`; `panels` are overwritten if they have the right size.

    `groups`: of a convolution, whose panels are cut where these end.
    """
    if q.scale is None:
        return {CANONICAL[0]: q.codes.to(device, copy=True)}
    if device.type == "cpu":
        packed = _native.pack(q.map(lambda t: t.to(device).contiguous()), panels, groups)
        if panels is not None and packed is panels and not panels.is_inference():
            increment_version(panels)
        return {PANELS: packed}
    tensors = zip(CANONICAL, q[:3], strict=True)
    return {name: tensor.to(device) for name, tensor in tensors if tensor is not None}


def reload(held: Held, q: QMatrix, device: torch.device, groups: int = 1) -> Held:
    """What a layer that held `held` holds once `q` is loaded: the same memory if it can be, so that ties stay."""
    source = next(iter(held.values()), None)
    if source is None or PANELS in held:
        return hold(q, device, groups, held.get(PANELS))
    given = dict(zip(CANONICAL, q[:3], strict=True))
    if device.type != "cpu" and all(_takes(t, given[name], device) for name, t in held.items()):
        for name, tensor in held.items():
            tensor.copy_(given[name])  # type: ignore[arg-type]
        return held
    loaded = hold(q, device, groups, became(source, device).get(PANELS))
    note(source, device, loaded)
    return loaded


def _takes(tensor: Tensor, value: Tensor | None, device: torch.device) -> bool:
    if value is None or tensor.is_inference():
        return False
    return (tensor.device, tensor.dtype, tensor.shape) == (device, value.dtype, value.shape)


def canonical(held: Held, cols: int, scheme: Scheme) -> QMatrix:
    """The weight in canonical form; new tensors where panels are held."""
    if PANELS in held:
        return _native.unpack(held[PANELS])._replace(group_size=scheme.group_size)
    codes, scale, zero = (held.get(name) for name in CANONICAL)
    return QMatrix(codes, scale, zero, cols, scheme.kind, scheme.group_size)


def canonical_like(held: Held, shape: tuple[int, int], scheme: Scheme) -> QMatrix:
    """`canonical` on the meta device: sizes and dtypes, nothing unpacked."""
    q = empty(shape, scheme)
    if scheme.qtype.is_cast:
        return q
    wide = (
        _native.has_wide_scales(held[PANELS])
        if PANELS in held
        else held["weight_scale"].dtype == torch.float32
    )
    return q._replace(scale=q.scale.float()) if wide else q


def dequantize(held: Held, shape: tuple[int, int], scheme: Scheme, dtype: torch.dtype) -> Tensor:
    """The float weight `[n, k]`."""
    # float64 and the like are not the kernels': exact from float32
    computed = dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float32
    if scheme.qtype.is_cast:
        return held[CANONICAL[0]].to(dtype)
    if PANELS in held:
        return _ops.dequantize(held[PANELS], *shape, computed).to(dtype)  # type: ignore[no-any-return]
    return _ops.dequantize_canonical(*canonical(held, shape[1], scheme), computed).to(dtype)  # type: ignore[no-any-return]


def convert(held: Held, cols: int, scheme: Scheme, device: torch.device, groups: int = 1) -> Held:
    """The same weight for `device`. Layers that held the same tensors get the same tensors."""
    source = next(iter(held.values()))
    moved = became(source, device)
    if not moved:
        if source.is_meta and device.type != "meta":  # `to_empty`: values come later, by load_state_dict
            moved = {name: torch.empty_like(tensor, device=device) for name, tensor in held.items()}
        else:
            moved = hold(canonical(held, cols, scheme), device, groups)
        note(source, device, moved)
    return moved


def became(source: Tensor, device: torch.device) -> Held:
    """The tensors that took the place of `source` on `device`, if they live and are unchanged since; else nothing."""
    target, refs = _converted.get(source, (None, {}))
    found: dict[str, Any] = {name: ref() for name, (ref, _) in refs.items()}
    unchanged = all(t is not None and version(t) == refs[name][1] for name, t in found.items())
    return found if target == device and unchanged else {}


def note(source: Tensor, device: torch.device, moved: Held) -> None:
    """`moved` took the place of `source` on `device`."""
    _converted[source] = device, {name: (weakref.ref(t), version(t)) for name, t in moved.items()}


def version(tensor: Tensor) -> int:
    """How often it was written; an inference tensor does not know."""
    return -1 if tensor.is_inference() else tensor._version


def repacked(held: Held, cols: int, scheme: Scheme, groups: int = 1) -> Held:
    """The same weight in panels that this machine's kernel reads."""
    panels = held.get(PANELS)
    # only a plain tensor has bytes to look at: a tracer's copy of the layer has not
    if type(panels) is Tensor and not _native.is_native(panels):
        return convert(held, cols, scheme, torch.device("cpu"), groups)
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
    if scheme.qtype.is_cast:
        floats = given[CANONICAL[0]]
        if not floats.is_meta:
            _check_values(f"{prefix}{CANONICAL[0]}", floats, floats.isfinite(), "finite numbers")
        return want._replace(codes=floats)
    scale, zero = given["weight_scale"], given.get("weight_zero_point")
    if scheme.qtype.is_floating_point and not scale.is_meta:
        values = given["weight_packed"][:, : shape[1]].view(getattr(torch, scheme.qtype.name[1:])).float()
        _check_values(f"{prefix}weight_packed", values, values.isfinite(), "finite numbers")
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
