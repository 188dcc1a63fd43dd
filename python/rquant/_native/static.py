"""The native module's statically quantized products on torch tensors: addresses, once dtype, size and layout are right.

Scales and zero points are tensors of one element (float32, int8); an image is `[N, C, H, W]` in channels-last memory.
"""

from typing import NamedTuple

from .. import _rquant
from .._threads import get_num_threads
from .arrays import Array, address_of, dtype_code, typed
from .panels import bias_of


class Epilogue(NamedTuple):
    """What is done to the values of a product: see `_static_ops`."""

    addend: Array | None
    addend_scale: Array | None
    addend_zero: Array | None
    lo: float | None
    hi: float | None
    out_scale: Array | None
    out_zero: Array | None


def _rows(image: Array) -> Array:
    """An image as it lies in memory: `[N, H, W, C]`. A matrix is as it is."""
    return image.permute(0, 2, 3, 1) if len(image.shape) == 4 else image


def qparams(scale: Array | None, zero: Array | None, name: str) -> tuple[int, int]:
    """Addresses of a scale and its zero point."""
    if scale is None or zero is None:
        raise ValueError(f"{name}scale, {name}zero: expected both, got {scale} and {zero}")
    return typed(scale, f"{name}scale", "float32", 1), typed(zero, f"{name}zero", "int8", 1)


def conv(
    x: Array,
    qparams_of_x: tuple[Array, Array],
    sizes: tuple[int, ...],
    panels: Array,
    bias: Array | None,
    epilogue: Epilogue,
    out: Array,
) -> None:
    """`_rquant.conv_static` of codes `x`; `x` and `out` have the shapes that `sizes` say, or those of a matrix."""
    x_scale, x_zero = qparams_of_x
    x_at = typed(_rows(x), "x", "int8"), typed(x_scale, "x_scale", "float32"), x_scale.numel()
    x_zero_at = typed(x_zero, "x_zero", "int8", 1)
    addend_at, addend_scale, addend_zero = 0, 0, 0
    if epilogue.addend is not None:
        if epilogue.addend.shape != out.shape:
            raise ValueError(f"addend: expected shape {tuple(out.shape)}, got {tuple(epilogue.addend.shape)}")
        addend_at = typed(_rows(epilogue.addend), "addend", "int8")
        addend_scale, addend_zero = qparams(epilogue.addend_scale, epilogue.addend_zero, "addend_")
    out_scale, out_zero, out_dtype = 0, 0, 0
    if epilogue.out_scale is None:
        out_dtype = dtype_code(out, "dtype")
    else:
        out_scale, out_zero = qparams(epilogue.out_scale, epilogue.out_zero, "out_")
    _rquant.conv_static(
        *x_at, x_zero_at, sizes, typed(panels, "panels", "uint8"), panels.nbytes, *bias_of(bias, sizes[4]),
        addend_at, addend_scale, addend_zero, epilogue.lo, epilogue.hi, address_of(_rows(out), "out"), out_dtype,
        out_scale, out_zero, get_num_threads(),
    )  # fmt: skip


def conv_fixed(
    x: Array,
    x_zero: Array,
    sizes: tuple[int, ...],
    panels: Array,
    fixed: tuple[Array | None, Array, Array, Array],
    ends: tuple[int, int],
    out: Array,
) -> None:
    """`_rquant.conv_fixed`: `fixed` is bias, multiplier, shift (int32, one a channel) and zero point of the codes `out`."""
    bias, multiplier, shift, out_zero = fixed
    n = sizes[4]
    _rquant.conv_fixed(
        typed(_rows(x), "x", "int8"), typed(x_zero, "x_zero", "int8", 1), sizes, typed(panels, "panels", "uint8"),
        panels.nbytes, 0 if bias is None else typed(bias, "bias", "int32", n), typed(multiplier, "multiplier", "int32", n),
        typed(shift, "shift", "int32", n), typed(out_zero, "out_zero", "int8", 1), *ends, address_of(_rows(out), "out"),
        get_num_threads(),
    )  # fmt: skip


def quantize(x: Array, scale: Array, zero: Array, codes: Array, finite: Array) -> None:
    """Codes of `x` into `codes`, both contiguous, and which of its samples are finite."""
    _rquant.quantize_static(
        address_of(x, "x"), dtype_code(x, "x"), x.numel(), *qparams(scale, zero, ""), typed(codes, "codes", "int8", x.numel()),
        typed(finite, "finite", "bool"), finite.numel(), get_num_threads(),
    )  # fmt: skip


def quantize_images(x: Array, scale: Array, zero: Array, codes: Array, finite: Array) -> None:
    """The same of images `x` `[N, C, H, W]`, contiguous; `codes` are in channels-last memory."""
    images, channels, height, width = x.shape
    _rquant.quantize_images(
        address_of(x, "x"), dtype_code(x, "x"), (images, channels, height * width), *qparams(scale, zero, ""),
        typed(_rows(codes), "codes", "int8", images * channels * height * width), typed(finite, "finite", "bool", images),
        get_num_threads(),
    )  # fmt: skip


def dequantize(codes: Array, scale: Array, zero: Array, out: Array) -> None:
    """`scale * (codes - zero)` into `out`, both contiguous."""
    _rquant.dequantize_static(
        typed(codes, "codes", "int8"), codes.numel(), *qparams(scale, zero, ""), address_of(out, "out"), dtype_code(out, "dtype"),
        get_num_threads(),
    )  # fmt: skip
