"""Torch's functions that int8 passes: each takes `Activation`s and gives one, or NotImplemented for what only floats can do."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .._static_ops import pooled_size
from .value import Averaged, Joined, MaxPooled, Padded, Value
from .view import View

HANDLERS: dict[Any, Callable[..., Any]] = {}
"""By function, as `__torch_function__` gets it."""
METHODS: dict[str, Callable[..., Any]] = {}
"""By the name of a method of a tensor."""
_ARGUMENTS: dict[Callable[..., Any], tuple[str, ...]] = {}


def _register(*functions: Any, methods: Sequence[str] = ()) -> Callable[..., Any]:
    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(handler).parameters.values()
        _ARGUMENTS[handler] = tuple(p.name for p in parameters if p.kind is not p.VAR_POSITIONAL)
        HANDLERS.update(dict.fromkeys(functions, handler))
        for name in methods:
            METHODS[name] = handler
            HANDLERS[getattr(Tensor, name)] = handler
        return handler

    return register


def knows(handler: Callable[..., Any], names: Iterable[str]) -> bool:
    """Whether a handler takes arguments of these names; with others, as `out`, torch's function gets floats."""
    arguments = _ARGUMENTS[handler]
    return arguments[-1] == "kwargs" or all(name in arguments for name in names)


def _made(x: Any, value: Value, inplace: bool = False) -> Any:
    return x.become(value) if inplace else type(x)(value)


def _floats(x: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    plain = [a.float() if type(a) is type(x) else a for a in args]
    return getattr(x.float(), name)(*plain, **kwargs)


def _clamp(x: Any, lo: float, hi: float, inplace: bool = False) -> Any:
    return _made(x, x.value.clamp(lo, hi), inplace)


@_register(functional.relu, torch.relu, methods=["relu"])
def _relu(x: Any, inplace: bool = False) -> Any:
    return _clamp(x, 0.0, math.inf, inplace)


@_register(torch.relu_, methods=["relu_"])
def _relu_(x: Any) -> Any:
    return _clamp(x, 0.0, math.inf, True)


@_register(functional.relu6)
def _relu6(x: Any, inplace: bool = False) -> Any:
    return _clamp(x, 0.0, 6.0, inplace)


@_register(functional.hardtanh)
def _hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    return _clamp(x, float(min_val), float(max_val), inplace)


@_register(torch.clamp, torch.clip, methods=["clamp", "clip"])
def _clamp_function(x: Any, min: Any = None, max: Any = None) -> Any:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        return _floats(x, "clamp", min, max)
    return _clamp(x, -math.inf if min is None else float(min), math.inf if max is None else float(max))


@_register(torch.add, methods=["add"])
def _add(x: Any, other: Any, *, alpha: float = 1) -> Any:
    if isinstance(x, Tensor):
        return torch.add(x, other.float(), alpha=alpha)
    both = type(other) is type(x) and other.shape == x.shape and other.value.arithmetic is x.value.arithmetic
    if not both or alpha != 1:
        return _floats(x, "add", other, alpha=alpha)
    return _made(x, x.value.add(other.value))


@_register(methods=["add_", "__iadd__"])
def _add_(x: Any, other: Any, *, alpha: float = 1) -> Any:
    if isinstance(x, Tensor):
        return x.add_(other.float(), alpha=alpha)
    result = _add(x, other, alpha=alpha)
    if not isinstance(result, Tensor):
        return x.become(result.value)
    if result.shape != x.shape:  # torch says why not
        return x.change(Tensor.add_, (other,), {"alpha": alpha})
    return x.become(x.value.given(result.to(x.dtype)))


@_register(torch.cat, torch.concat, torch.concatenate)
def _cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    first = tensors[0]
    if isinstance(first, Tensor):
        return NotImplemented
    same = all(
        type(t) is type(first) and t.value.arithmetic is first.value.arithmetic and t.dtype == first.dtype
        for t in tensors
    )
    if not same:
        return NotImplemented
    if len(tensors) == 1:
        return first
    dim %= first.dim()
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    node = Joined([t.value for t in tensors], dim)
    return _made(first, Value(first.value.arithmetic, node, shape, first.dtype))


@_register(functional.dropout, functional.dropout2d, torch.dropout)
def _dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return NotImplemented if training and p > 0 else x


def _moved(x: Any, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Any:
    like = torch.empty(x.shape, device="meta")
    out = func(like, *args, **kwargs)
    # of dense memory: samples stay where they are as far apart as before, and as many
    stay = out.shape[:1] == like.shape[:1] and (out.dim() == 0 or out.stride(0) == like.stride(0))
    return _as_moved(x, func, args, kwargs, out.shape, stay)


def _as_moved(
    x: Any, func: Callable[..., Tensor], args: Any, kwargs: dict[str, Any], shape: torch.Size, stay: bool
) -> Any:
    return View(x, func, args, kwargs, shape, stay).made()


@_register(torch.flip, methods=["flip"])
def _flip(x: Any, *given: Any, dims: Any = None) -> Any:
    given = given if dims is None else (dims,)
    flipped = given if all(isinstance(d, int) for d in given) else given[0]
    stay = all(d % x.dim() for d in flipped)
    return _as_moved(x, Tensor.flip, (tuple(flipped),), {}, x.shape, stay)


def _movement(function: Any, name: str) -> None:
    def handler(x: Any, *args: Any, **kwargs: Any) -> Any:
        return _moved(x, getattr(Tensor, name), *args, **kwargs)

    _register(*([] if function is None else [function]), methods=[name])(handler)


_MOVEMENTS = """
flatten reshape permute transpose squeeze unsqueeze swapaxes swapdims movedim moveaxis narrow select unflatten contiguous
"""
for _name in _MOVEMENTS.split():
    _movement(getattr(torch, _name, None), _name)


@_register(methods=["view"])
def _view(x: Any, *size: Any) -> Any:
    if isinstance(size[0], torch.dtype):
        return NotImplemented
    return _moved(
        x, Tensor.reshape, *size
    )  # codes and floats may lie otherwise than the model's author knows


@_register(methods=["__getitem__"])
def _getitem(x: Any, index: Any) -> Any:
    simple = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(i, slice | int) or i is None or i is Ellipsis for i in simple):
        return x.float()[index]
    return _moved(x, Tensor.__getitem__, index)


@_register(methods=["view_as", "reshape_as"])
def _view_as(x: Any, other: Any) -> Any:
    return _moved(x, Tensor.reshape, other.shape)


def _pieces(x: Any, func: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    count = len(func(torch.empty(x.shape, device="meta"), *args, **kwargs))

    def piece(i: int) -> Callable[[Tensor], Tensor]:
        return lambda t: func(t, *args, **kwargs)[i]

    return tuple(_moved(x, piece(i)) for i in range(count))


@_register(torch.chunk, methods=["chunk"])
def _chunk(x: Any, *args: Any, **kwargs: Any) -> Any:
    return _pieces(x, torch.chunk, *args, **kwargs)


@_register(torch.split, methods=["split"])
def _split(x: Any, *args: Any, **kwargs: Any) -> Any:
    return _pieces(x, Tensor.split, *args, **kwargs)


@_register(torch.unbind, methods=["unbind"])
def _unbind(x: Any, dim: int = 0) -> Any:
    return _pieces(x, Tensor.unbind, dim)


@_register(torch.channel_shuffle, functional.channel_shuffle, torch.native_channel_shuffle)
def _channel_shuffle(x: Any, groups: int) -> Any:
    return _moved(x, lambda t: t.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


def _pooled(x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Any:
    """Arguments in pairs, and the shape."""
    kernel = _pair(kernel)
    stride = kernel if stride is None or stride == [] else _pair(stride)
    padding, dilation = _pair(padding), _pair(dilation)
    size = [
        pooled_size(x.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i], ceil_mode) for i in (0, 1)
    ]
    return (kernel, stride, padding, dilation), (*x.shape[:2], *size)


@_register(functional.max_pool2d, torch.max_pool2d)
def _max_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if return_indices or x.dim() != 4:
        return NotImplemented
    args, shape = _pooled(x, kernel_size, stride, padding, dilation, ceil_mode)
    node = MaxPooled(x.value, (*args, ceil_mode))
    return _made(x, Value(x.value.arithmetic, node, shape, x.dtype))


@_register(functional.avg_pool2d)
def _avg_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    if x.dim() != 4:
        return NotImplemented
    (kernel, stride, padding, _), shape = _pooled(x, kernel_size, stride, padding, 1, ceil_mode)
    node = Averaged(x.value, (kernel, stride, padding, ceil_mode, count_include_pad, divisor_override))
    return _made(x, Value(x.value.arithmetic, node, shape, x.dtype))


@_register(functional.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(x: Any, output_size: Any) -> Any:
    if x.dim() != 4:
        return NotImplemented
    size = [
        own if wanted is None else wanted for own, wanted in zip(x.shape[2:], _pair(output_size), strict=True)
    ]
    node = Averaged(x.value, (size,))
    return _made(x, Value(x.value.arithmetic, node, (*x.shape[:2], *size), x.dtype))


@_register(torch.mean, methods=["mean"])
def _mean(x: Any, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    spatial = x.dim() == 4 and not isinstance(dim, int | None) and sorted(d % 4 for d in dim) == [2, 3]
    if not spatial or kwargs:
        return _floats(x, "mean", *(() if dim is None else (dim, keepdim)), **kwargs)
    pooled = _adaptive_avg_pool2d(x, 1)
    return pooled if keepdim else _moved(pooled, Tensor.flatten, 1)


@_register(functional.pad)
def _pad(x: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    if mode != "constant" or value not in (None, 0, 0.0):
        return NotImplemented
    like = functional.pad(torch.empty(x.shape, device="meta"), list(pad))
    return _made(x, Value(x.value.arithmetic, Padded(x.value, pad), like.shape, x.dtype))
