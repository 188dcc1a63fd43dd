"""The shortest way of a statically quantized product into the native module: for plain CPU tensors in eager mode.

A call of an op checks some twenty arguments, which takes longer than a small convolution. Here what a layer does with inputs
of one size is checked once. Programs that are compiled, exported or traced, and modes that watch operators, see
`rquant::conv_static` and `rquant::linear_static`.
"""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _rquant

_CODES = {torch.float32: _rquant.FLOAT32, torch.float16: _rquant.FLOAT16, torch.bfloat16: _rquant.BFLOAT16}
_MOST = 16
"""Sizes of input and epilogues that are kept of a layer."""


def possible(x: Tensor) -> bool:
    """Whether nobody watches and `x` is a tensor with memory here."""
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and x.is_cpu
    )


class Sized(NamedTuple):
    """A product of an input of a certain size."""

    sizes: tuple[int, ...]
    """As `_rquant.conv_static` takes them."""
    shape: torch.Size
    """Of the output."""


class _Ready(NamedTuple):
    """A product for inputs of one size and one epilogue."""

    run: Callable[..., bool]
    panels: Callable[[], Tensor | None]
    strides: tuple[int, ...]
    """Of the input."""
    shape: torch.Size
    out_strides: tuple[int, ...]


class Launches:
    """What a layer keeps of the products it did.

    `geometry`: what of the layer they depend on, as it was then. `memory`: how inputs and outputs lie.
    """

    def __init__(self, geometry: tuple[Any, ...], memory: torch.memory_format) -> None:
        self.geometry, self._memory = geometry, memory
        self._sized: dict[torch.Size, Sized] = {}
        self._ready: dict[tuple[Any, ...], _Ready] = {}

    def sized(self, shape: torch.Size, find: Callable[[torch.Size], Sized]) -> Sized:
        """What an input of this shape gives; `find` says so the first time."""
        known = self._sized.get(shape)
        if known is None:
            known = find(shape)
            _keep(self._sized, shape, known)
        return known

    def product(
        self,
        find: Callable[[torch.Size], Sized],
        x: tuple[Tensor, Tensor, Tensor],
        panels: Tensor,
        bias: Tensor | None,
        addend: tuple[Tensor, Tensor, Tensor] | None,
        lo: float,
        hi: float,
        qparams: tuple[Tensor, Tensor] | None,
        dtype: torch.dtype,
    ) -> Tensor | None:
        """The layer on codes `x` (codes, scale and zero point, as `addend`): codes under `qparams`, or floats of `dtype`.

        None, and nothing done, where an argument is not quite as it is meant: the ops then take the call, and say what is
        wrong.
        """
        codes, x_scale, x_zero = x
        key = codes.shape, lo, hi, dtype if qparams is None else None, addend is None
        ready = self._ready.get(key)
        if ready is None or ready.panels() is not panels:
            ready = self._prepare(key, find, x, panels, bias, addend, qparams)
        if ready is None or codes.dtype is not torch.int8 or not self._lies(codes, ready.strides):
            return None
        _, _, _, shape, strides = ready
        if qparams is None:
            out, out_scale, out_zero = codes.new_empty_strided(shape, strides, dtype=dtype), 0, 0
        else:
            out = codes.new_empty_strided(shape, strides)
            out_scale, out_zero = qparams[0].data_ptr(), qparams[1].data_ptr()
        added = 0, 0, 0
        if addend is not None:
            q, scale, zero = addend
            if q.shape != shape or q.dtype is not torch.int8 or not self._lies(q, strides) or not q.is_cpu:
                return None
            added = q.data_ptr(), scale.data_ptr(), zero.data_ptr()
        arguments = (
            codes.data_ptr(), x_scale.data_ptr(), x_zero.data_ptr(), panels.data_ptr(), panels.nbytes,
            0 if bias is None else bias.data_ptr(), *added, out.data_ptr(), out_scale, out_zero, torch.get_num_threads(),
        )  # fmt: skip
        if ready.run(*arguments):
            return out
        # another tensor has taken the place of one
        ready = self._prepare(key, find, x, panels, bias, addend, qparams)
        return out if ready is not None and ready.run(*arguments) else None

    def _prepare(
        self,
        key: tuple[Any, ...],
        find: Callable[[torch.Size], Sized],
        x: tuple[Tensor, Tensor, Tensor],
        panels: Tensor,
        bias: Tensor | None,
        addend: tuple[Tensor, Tensor, Tensor] | None,
        qparams: tuple[Tensor, Tensor] | None,
    ) -> _Ready | None:
        in_shape, lo, hi, dtype, _ = key
        sizes, shape = self.sized(in_shape, find)
        fits = (
            min(*shape, *in_shape) > 0
            and _one(*x[1:])
            and (addend is None or _one(*addend[1:]))
            and (qparams is None or _one(*qparams))
            and (panels.dtype is torch.uint8 and panels.is_cpu and panels.is_contiguous())
            and (bias is None or _vector(bias, sizes[4]))
            and (qparams is not None or dtype in _CODES)
        )
        if not fits:
            return None
        held = [x[1], x[2], bias, *(addend[1:] if addend else (None, None)), *(qparams or (None, None))]
        # what is kept is other tensors of the same memory: their own may be exchanged
        kept = [tensor if tensor is None else tensor.detach() for tensor in held]
        product = _rquant.StaticProduct(
            sizes, lo, hi, 0 if bias is None else _CODES[bias.dtype], 0 if dtype is None else _CODES[dtype],
            [0 if tensor is None else tensor.data_ptr() for tensor in kept], kept,
        )  # fmt: skip
        strides, out_strides = (
            torch.empty(size, device="meta", memory_format=self._memory).stride()
            for size in (in_shape, shape)
        )
        ready = _Ready(product.run, weakref.ref(panels), strides, shape, out_strides)
        _keep(self._ready, key, ready)
        return ready

    def _lies(self, x: Tensor, strides: tuple[int, ...]) -> bool:
        """Whether elements lie as these strides say; those of a dimension of one element are anything."""
        return x.stride() == strides or x.is_contiguous(memory_format=self._memory)


def _keep(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= _MOST:
        known.clear()
    known[key] = value


def _one(scale: Tensor, zero: Tensor) -> bool:
    return (
        scale.dtype is torch.float32
        and zero.dtype is torch.int8
        and scale.numel() == 1
        and zero.numel() == 1
        and scale.is_cpu
        and zero.is_cpu
    )


def _vector(bias: Tensor, n: int) -> bool:
    return bias.is_cpu and bias.is_contiguous() and bias.numel() == n and bias.dtype in _CODES
