"""The native operations on int8 codes, for torch tensors: what is checked here is types, sizes and devices; addresses are
taken. Memory is dense, and of the order that each function names; `_backends.static_elementwise` sees to that.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _rquant
from .._threads import get_num_threads

_FLOATS = {
    torch.float32: _rquant.FLOAT32,
    torch.float16: _rquant.FLOAT16,
    torch.bfloat16: _rquant.BFLOAT16,
}
Codes = tuple[Tensor, Tensor, Tensor]
"""int8 codes, their scale (float32) and zero point (int8), of one element each."""


def _address(x: Tensor, argument: str, dtype: torch.dtype, count: int | None = None) -> int:
    if x.dtype != dtype:
        raise ValueError(f"{argument}: expected dtype {dtype}, got {x.dtype}")
    if not x.is_cpu:
        raise ValueError(f"{argument}: expected a CPU tensor, got one on {x.device}")
    if count is not None and x.numel() != count:
        raise ValueError(f"{argument}: expected {count} elements, got shape {tuple(x.shape)}")
    return x.data_ptr()


def _parameters(scale: Tensor, zero: Tensor, of: str = "") -> tuple[int, int]:
    at = _address(scale, f"{of}scale", torch.float32, 1)
    return at, _address(zero, f"{of}zero", torch.int8, 1)


def _codes(codes: Codes, argument: str, count: int | None = None, of: str = "") -> tuple[int, int, int]:
    return _address(codes[0], argument, torch.int8, count), *_parameters(codes[1], codes[2], of)


def _float_code(dtype: torch.dtype, argument: str) -> int:
    code = _FLOATS.get(dtype)
    if code is None:
        raise ValueError(f"{argument}: expected dtype float32, float16 or bfloat16, got {dtype}")
    return code


def add(a: Codes, b: Codes, lo: float | None, hi: float | None, out: Codes) -> None:
    """Codes of the clamped sum into `out`; all three of one memory order."""
    count = a[0].numel()
    given = _codes(a, "a", of="a_"), _codes(b, "b", count, "b_")
    _rquant.add_static(*given, count, lo, hi, _codes(out, "out", count, "out_"), get_num_threads())


def requantize(x: Codes, lo: float | None, hi: float | None, out: Codes) -> None:
    """Codes of the same values, clamped, under `out`'s parameters; both of one memory order."""
    count = x[0].numel()
    to = _codes(out, "out", count, "out_")
    _rquant.requantize_static(_codes(x, "x"), count, lo, hi, to, get_num_threads())


def lookup(x: Tensor, table: Tensor, out: Tensor) -> None:
    """`table[q + 128]` of each code; x and out of one memory order."""
    count, at = x.numel(), _address(x, "x", torch.int8)
    given = at, _address(table, "table", torch.int8, 256), count
    _rquant.lookup_static(*given, _address(out, "out", torch.int8, count), get_num_threads())


def concat(xs: Sequence[Codes], rows: int, out: Codes) -> None:
    """Each of `xs` is `[rows, ..]`, `out` has their rows side by side."""
    parts = [(*_codes(x, "xs", of="scales, zeros: "), x[0].numel() // max(rows, 1)) for x in xs]
    count = sum(x[0].numel() for x in xs)
    _rquant.concat_static(parts, rows, _codes(out, "out", count, "out_"), get_num_threads())


Image = tuple[int, int, int, int]
"""Images, height, width, channels: the order of memory."""
Pair = tuple[int, int]


def pooled_size(shape: Image, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil: bool) -> Pair:
    """Height and width that a pooling makes of an image."""
    return _rquant.pooled_size(shape[1:3], kernel, stride, padding, dilation, ceil)


def max_pool(
    x: Tensor,
    shape: Image,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil: bool,
    out: Tensor,
) -> None:
    """The largest code of each window."""
    given = _address(x, "x", torch.int8), shape, kernel, stride, padding, dilation, ceil
    _rquant.max_pool_static(*given, _address(out, "out", torch.int8), get_num_threads())


def avg_pool(
    x: Codes,
    shape: Image,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    ceil: bool,
    count_include_pad: bool,
    divisor: int | None,
    out: Codes,
) -> None:
    """Codes of each window's mean."""
    given = _codes(x, "x"), shape, kernel, stride, padding, ceil, count_include_pad, divisor
    _rquant.avg_pool_static(*given, _codes(out, "out", of="out_"), get_num_threads())


def adaptive_avg_pool(x: Codes, shape: Image, output_size: Pair, out: Codes) -> None:
    """Codes of the means of an image's parts."""
    to = _codes(out, "out", of="out_")
    _rquant.adaptive_avg_pool_static(_codes(x, "x"), shape, output_size, to, get_num_threads())


def layer_norm(
    x: Tensor,
    params: tuple[Tensor, Tensor] | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    features: int,
    out: Codes,
) -> None:
    """Codes of rows of `features` elements, normalized. x: int8 codes under `params`, else floats."""
    rows, code = x.numel() // max(features, 1), 0
    if params is None:
        code = _float_code(x.dtype, "x")
        at = _address(x, "x", x.dtype), 0, 0
    else:
        at = _codes((x, *params), "x")
    weight_at = 0 if weight is None else _address(weight, "weight", torch.float32, features)
    bias_at = 0 if bias is None else _address(bias, "bias", torch.float32, features)
    to = _codes(out, "out", x.numel(), "out_")
    _rquant.layer_norm_static(at, code, rows, features, weight_at, bias_at, eps, to, get_num_threads())


def affine(
    x: Codes,
    inner: int,
    mul: Tensor,
    add: Tensor,
    lo: float | None,
    hi: float | None,
    out: Tensor,
    params: tuple[Tensor, Tensor] | None,
) -> None:
    """`x * mul + add` by channel, clamped: codes under `params`, else floats. Memory `[.., channels, inner]`."""
    channels, count = mul.numel(), x[0].numel()
    shape = count // max(channels * inner, 1), channels, inner
    given = _address(mul, "mul", torch.float32), _address(add, "add", torch.float32, channels), lo, hi
    if params is None:
        to, code = (_address(out, "out", out.dtype, count), 0, 0), _float_code(out.dtype, "dtype")
    else:
        to, code = _codes((out, *params), "out", count, "out_"), 0
    _rquant.affine_static(_codes(x, "x"), shape, *given, to, code, get_num_threads())


def fake_quantize(
    x: Tensor, scale: Tensor, zero: Tensor, inner: int, out: Tensor | None, inside: Tensor | None
) -> None:
    """x as its codes read back into `out`, of x's dtype; whether each came without clipping into `inside`, bool.

    Memory `[.., channels, inner]`, with a scale and a zero point a channel.
    """
    channels, count = scale.numel(), x.numel()
    shape = count // max(channels * inner, 1), channels, inner
    code = _float_code(x.dtype, "x")
    given = _address(scale, "scale", torch.float32), _address(zero, "zero", torch.int8, channels)
    to = 0 if out is None else _address(out, "out", x.dtype, count)
    mask = 0 if inside is None else _address(inside, "inside", torch.bool, count)
    at = _address(x, "x", x.dtype)
    _rquant.fake_quantize_static(at, code, shape, *given, to, mask, get_num_threads())
