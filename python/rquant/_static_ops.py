"""The `rquant::` ops of statically quantized activations: int8 codes in, int8 codes or floats out.

Codes q of a tensor x have one scale and one zero point, tensors of one element (float32, int8): `x = scale * (q - zero)`, q in
[-127, 127]. Images are `[N, C, H, W]` in channels-last memory.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._backends import cuda_static, static_canonical, static_cpu
from ._backends import static_elementwise as elementwise
from ._backends import static_reference as reference
from ._ops import _WEIGHT, checked, define, define_native

INF = math.inf
_QPARAMS = "Tensor out_scale, Tensor out_zero"
_EPILOGUE = (
    "Tensor? addend, Tensor? addend_scale, Tensor? addend_zero, float? lo, float? hi, "
    "Tensor? out_scale, Tensor? out_zero, ScalarType? dtype"
)
_CONV = "int[] kernel, int[] stride, int[] padding, int[] dilation, int groups, bool transposed, int[] output_padding"


def finite_ends(lo: float, hi: float) -> tuple[float | None, float | None]:
    """Of a clamp, as ops take them: None for infinity, of which torch's packages of compiled programs can't tell."""
    return None if lo == -INF else lo, None if hi == INF else hi


def conv_size(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, transposed: bool, extra: int
) -> int:
    """Output positions of a convolution along one dimension; `padding` at both ends, `extra` output padding."""
    span = dilation * (kernel - 1) + 1
    if transposed:
        return (size - 1) * stride - sum(padding) + span + extra
    return (size + sum(padding) - span) // stride + 1


def conv_shape(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
) -> tuple[int, int]:
    """Height and width that a convolution makes of `size`."""
    height, width = (
        conv_size(size[i], kernel[i], stride[i], (padding[i], padding[i + 2]), dilation[i], transposed, output_padding[i])
        for i in (0, 1)
    )  # fmt: skip
    return height, width


def _out(like: Tensor, shape: Sequence[int], out_scale: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    dtype = torch.int8 if out_scale is not None else dtype
    last = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype, device=like.device, memory_format=last)


def _linear_shape(  # type: ignore[no-untyped-def]
    x, x_scale, x_zero, panels, bias, n, addend, a_scale, a_zero, lo, hi, out_scale, out_zero, dtype
):
    return x.new_empty((*x.shape[:-1], n), dtype=torch.int8 if out_scale is not None else dtype)


def _conv_shape(  # type: ignore[no-untyped-def]
    x, x_scale, x_zero, panels, bias, n, kernel, stride, padding, dilation, groups, transposed, output_padding,
    addend, a_scale, a_zero, lo, hi, out_scale, out_zero, dtype,
):  # fmt: skip
    size = conv_shape(x.shape[2:], kernel, stride, padding, dilation, transposed, output_padding)
    return _out(x, (x.shape[0], n, *size), out_scale, dtype)


def pooled_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """torch's rule: with `ceil_mode` the last window must start inside the image or its padding before it."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (-(-room // stride) if ceil_mode else room // stride) + 1
    return out - 1 if ceil_mode and (out - 1) * stride >= size + padding else out


def _pool_shape(x, kernel, stride, padding, dilation, ceil_mode):  # type: ignore[no-untyped-def]
    size = (
        pooled_size(x.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i], ceil_mode) for i in (0, 1)
    )
    return _out(x, (*x.shape[:2], *size), x, None)


def _concat_shape(xs, scales, zeros, dim, out_scale, out_zero):  # type: ignore[no-untyped-def]
    dim %= xs[0].dim()
    shape = list(xs[0].shape)
    shape[dim] = sum(x.shape[dim] for x in xs)
    return _out(xs[0], shape, out_scale, None)


define_native(
    "quantize_static",
    "(Tensor x, Tensor scale, Tensor zero) -> (Tensor, Tensor)",
    lambda x, *_: (
        torch.empty_like(x, dtype=torch.int8),
        x.new_empty(x.shape[:1] if x.dim() else (1,), dtype=torch.bool),
    ),
    on_cpu=static_cpu.quantize_static,
    elsewhere=reference.quantize_static,
)
define_native(
    "quantize_images_static",
    "(Tensor x, Tensor scale, Tensor zero) -> (Tensor, Tensor)",
    lambda x, *_: (
        torch.empty_like(x, dtype=torch.int8, memory_format=torch.channels_last),
        x.new_empty(x.shape[:1], dtype=torch.bool),
    ),
    on_cpu=static_cpu.quantize_images_static,
)
define_native(
    "dequantize_static",
    "(Tensor codes, Tensor scale, Tensor zero, ScalarType dtype) -> Tensor",
    lambda codes, scale, zero, dtype: torch.empty_like(codes, dtype=dtype),
    on_cpu=static_cpu.dequantize_static,
    elsewhere=reference.dequantize_static,
)
define(
    "fake_quantize_static",
    "(Tensor x, Tensor scale, Tensor zero, int? dim=None) -> Tensor",
    lambda x, *_: torch.empty_like(x),
    on_cpu=elementwise.fake_quantize_static,
    elsewhere=reference.fake_quantize_static,
)
define(
    "inside_range_static",
    "(Tensor x, Tensor scale, Tensor zero, int? dim=None) -> Tensor",
    lambda x, *_: torch.empty_like(x, dtype=torch.bool),
    on_cpu=elementwise.inside_range_static,
    elsewhere=reference.inside_range_static,
)
define_native(
    "linear_static",
    f"(Tensor x, Tensor x_scale, Tensor x_zero, Tensor panels, Tensor? bias, int n, {_EPILOGUE}) -> Tensor",
    _linear_shape,
    on_cpu=static_cpu.linear_static,
    elsewhere=reference.linear_static,
)
define(
    "linear_canonical_static",
    f"(Tensor x, Tensor x_scale, Tensor x_zero, {_WEIGHT}, int kind, int group_size, Tensor? bias, {_EPILOGUE}) -> Tensor",
    lambda x, x_scale, x_zero, codes, scale, zero, kind, group, bias, *rest: _linear_shape(
        x, x_scale, x_zero, codes, bias, codes.shape[0], *rest
    ),
    on_cuda=cuda_static.linear_canonical_static,
    elsewhere=static_canonical.linear_canonical_static,
)
define_native(
    "conv_static",
    f"(Tensor x, Tensor x_scale, Tensor x_zero, Tensor panels, Tensor? bias, int out_channels, {_CONV}, {_EPILOGUE}) -> Tensor",
    _conv_shape,
    on_cpu=static_cpu.conv_static,
    elsewhere=reference.conv_static,
)
define(
    "conv_canonical_static",
    f"(Tensor x, Tensor x_scale, Tensor x_zero, {_WEIGHT}, int kind, int group_size, Tensor? bias, int out_channels, "
    f"{_CONV}, {_EPILOGUE}) -> Tensor",
    lambda x, x_scale, x_zero, codes, scale, zero, kind, group, *rest: _conv_shape(
        x, x_scale, x_zero, codes, *rest
    ),
    elsewhere=static_canonical.conv_canonical_static,
)
define(
    "conv_fixed_static",
    f"(Tensor x, Tensor x_zero, Tensor panels, Tensor? bias, int out_channels, {_CONV}, "
    "Tensor multiplier, Tensor shift, Tensor out_zero, int lo, int hi) -> Tensor",
    lambda x, x_zero, panels, bias, n, kernel, stride, padding, dilation, groups, transposed, extra, *_: _out(
        x,
        (x.shape[0], n, *conv_shape(x.shape[2:], kernel, stride, padding, dilation, transposed, extra)),
        x,
        None,
    ),
    on_cpu=static_cpu.conv_fixed_static,
    elsewhere=reference.conv_fixed_static,
)
define_native(
    "add_static",
    f"(Tensor a, Tensor a_scale, Tensor a_zero, Tensor b, Tensor b_scale, Tensor b_zero, float? lo, float? hi, {_QPARAMS}) -> Tensor",
    lambda a, *_: torch.empty_like(a),
    on_cpu=elementwise.add_static,
    elsewhere=reference.add_static,
)
define_native(
    "requantize_static",
    f"(Tensor x, Tensor scale, Tensor zero, float? lo, float? hi, {_QPARAMS}) -> Tensor",
    lambda x, *_: torch.empty_like(x),
    on_cpu=elementwise.requantize_static,
    elsewhere=reference.requantize_static,
)
define(  # not native: torch would move the tensors out of lists that a traced program uses again
    "concat_static",
    f"(Tensor[] xs, Tensor[] scales, Tensor[] zeros, int dim, {_QPARAMS}) -> Tensor",
    _concat_shape,
    on_cpu=elementwise.concat_static,
    elsewhere=reference.concat_static,
)
define_native(
    "max_pool_static",
    "(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> Tensor",
    _pool_shape,
    on_cpu=elementwise.max_pool_static,
    elsewhere=reference.max_pool_static,
)
define_native(
    "avg_pool_static",
    "(Tensor x, Tensor scale, Tensor zero, int[] kernel, int[] stride, int[] padding, bool ceil_mode, "
    f"bool count_include_pad, int? divisor, {_QPARAMS}) -> Tensor",
    lambda x, s, z, kernel, stride, padding, ceil, *_: _pool_shape(x, kernel, stride, padding, (1, 1), ceil),
    on_cpu=elementwise.avg_pool_static,
    elsewhere=reference.avg_pool_static,
)
define_native(
    "adaptive_avg_pool_static",
    f"(Tensor x, Tensor scale, Tensor zero, int[] output_size, {_QPARAMS}) -> Tensor",
    lambda x, s, z, output_size, *_: _out(x, (*x.shape[:2], *output_size), x, None),
    on_cpu=elementwise.adaptive_avg_pool_static,
    elsewhere=reference.adaptive_avg_pool_static,
)
define(
    "layer_norm_static",
    "(Tensor x, Tensor? scale, Tensor? zero, Tensor? weight, Tensor? bias, float eps, int features, "
    f"{_QPARAMS}) -> Tensor",
    lambda x, *_: torch.empty_like(x, dtype=torch.int8, memory_format=torch.contiguous_format),
    on_cpu=elementwise.layer_norm_static,
    elsewhere=reference.layer_norm_static,
)
define(
    "affine_static",
    "(Tensor x, Tensor scale, Tensor zero, Tensor mul, Tensor add, float? lo, float? hi, Tensor? out_scale, "
    "Tensor? out_zero, ScalarType? dtype) -> Tensor",
    lambda x, s, z, mul, add, lo, hi, out_scale, out_zero, dtype: torch.empty_like(
        x, dtype=dtype if out_scale is None else torch.int8
    ),
    on_cpu=elementwise.affine_static,
    elsewhere=reference.affine_static,
)
define(
    "lookup_static",
    "(Tensor x, Tensor table) -> Tensor",
    lambda x, table: torch.empty_like(x),
    on_cpu=elementwise.lookup_static,
    elsewhere=reference.lookup_static,
)

quantize_static = checked("quantize_static")
quantize_images_static = checked("quantize_images_static")
dequantize_static = checked("dequantize_static")
fake_quantize_static = torch.ops.rquant.fake_quantize_static.default
inside_range_static = torch.ops.rquant.inside_range_static.default
linear_static = checked("linear_static")
linear_canonical_static = torch.ops.rquant.linear_canonical_static.default
conv_canonical_static = torch.ops.rquant.conv_canonical_static.default
conv_static = checked("conv_static")
conv_fixed_static = torch.ops.rquant.conv_fixed_static.default
add_static = checked("add_static")
requantize_static = checked("requantize_static")
concat_static = torch.ops.rquant.concat_static.default
max_pool_static = checked("max_pool_static")
avg_pool_static = checked("avg_pool_static")
adaptive_avg_pool_static = checked("adaptive_avg_pool_static")
layer_norm_static = torch.ops.rquant.layer_norm_static.default
affine_static = torch.ops.rquant.affine_static.default
lookup_static = torch.ops.rquant.lookup_static.default
