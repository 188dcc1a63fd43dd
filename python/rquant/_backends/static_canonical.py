"""The products of statically quantized activations by a weight in canonical form, as a device without panels holds it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .._native import QMatrix
from .static_reference import conv_static, linear_static


def linear_canonical_static(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    kind: int,
    group_size: int,
    bias: Tensor | None,
    *epilogue: object,
) -> Tensor:
    """`linear_static` of a canonical weight: what a device without panels holds."""
    q = QMatrix(codes, scale, zero_point, x.shape[-1], kind, group_size)
    return linear_static(x, x_scale, x_zero, q, bias, codes.shape[0], *epilogue)


def conv_canonical_static(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    kind: int,
    group_size: int,
    bias: Tensor | None,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *rest: Any,
) -> Tensor:
    """`conv_static` of a canonical weight."""
    cols = kernel[0] * kernel[1] * (x.shape[1] // groups)
    q = QMatrix(codes, scale, zero_point, cols, kind, group_size)
    shape = (kernel, stride, padding, dilation, groups)
    return conv_static(x, x_scale, x_zero, q, bias, out_channels, *shape, *rest)
