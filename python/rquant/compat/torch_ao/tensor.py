"""`torch.quantize_per_tensor` and `torch.quantize_per_channel`: scales and zero points given, torch's very codes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ... import _native
from ..._native import NotFinite, QMatrix
from ...qtypes import qint8
from ...scheme import PER_CHANNEL, Scheme
from ...tensor import QTensor

# lowest code, and what is added to it to be kept in int8
_TYPES = {torch.qint8: (-128, 0), torch.quint8: (0, -128)}
_SCHEME = Scheme(qint8, symmetric=False, group_size=PER_CHANNEL)


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedTensor(QTensor):
    """A `rquant.QTensor` whose codes are those of `dtype`, `torch.qint8` or `torch.quint8`.

    `int_repr`, `q_scale`, `q_zero_point`, `q_per_channel_scales`, `q_per_channel_zero_points`, `q_per_channel_axis`,
    `qscheme` and `dequantize` are torch's, but that scales have float32 precision: torch computes with no more.
    """

    dtype: torch.dtype

    @property
    def zero_point(self) -> Tensor:
        """Z as the codes of `dtype` count: int16 `[channels, 1]`, or `[1, 1]`."""
        return super().zero_point.to(torch.int16) - _TYPES[self.dtype][1]

    def int_repr(self) -> Tensor:
        """The codes: int8 or uint8, of the tensor's shape."""
        codes = super().int_repr()
        return codes if self.dtype == torch.qint8 else (codes.to(torch.int16) + 128).to(torch.uint8)


def quantize_per_tensor(
    input: Tensor, scale: float | Tensor, zero_point: int | Tensor, dtype: torch.dtype
) -> QuantizedTensor:
    """`clip(round(input * (1 / scale)) + zero_point)`, half to even, in float32: torch's rounding on x86, to the bit.

    (A product with 1 / scale, where rquant's own quantizers divide.) `input` is float32 of any shape; `dtype` torch.qint8,
    codes [-128, 127], or torch.quint8, [0, 255]. Raises ValueError for others, a scale that is not positive and finite, a
    zero point that is no code, and NaN or infinity in `input`, of which torch makes numbers.
    """
    scales = torch.as_tensor(scale, dtype=torch.float32).reshape(-1)
    zeros = torch.as_tensor(zero_point).reshape(-1)
    return _quantize(input, scales, zeros, None, dtype, ("scale", "zero_point"))


def quantize_per_channel(
    input: Tensor, scales: Tensor, zero_points: Tensor, axis: int, dtype: torch.dtype
) -> QuantizedTensor:
    """As `quantize_per_tensor`, with the scale and zero point of each index of `axis`: both `[input.shape[axis]]`."""
    if not isinstance(input, Tensor) or not -input.dim() <= axis < input.dim():
        shape = tuple(input.shape) if isinstance(input, Tensor) else type(input).__name__
        raise ValueError(f"axis: expected a dimension of shape {shape}, got {axis}")
    return _quantize(input, scales.float(), zero_points, axis % input.dim(), dtype, ("scales", "zero_points"))


def _quantize(
    x: Tensor, scale: Tensor, zero: Tensor, axis: int | None, dtype: torch.dtype, names: tuple[str, str]
) -> QuantizedTensor:
    if dtype not in _TYPES:
        raise ValueError(f"dtype: expected {' or '.join(map(str, _TYPES))}, got {dtype}")
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        raise ValueError(f"input: expected a tensor of float32, got {getattr(x, 'dtype', type(x).__name__)}")
    channels = 1 if axis is None else x.shape[axis]
    lowest, shift = _TYPES[dtype]
    for name, given in zip(names, (scale, zero), strict=True):
        if given.shape != (channels,):
            raise ValueError(f"{name}: expected shape ({channels},), got {tuple(given.shape)}")
    if not ((scale > 0) & scale.isfinite()).all():
        raise ValueError(f"{names[0]}: expected positive and finite, got {scale.tolist()}")
    if zero.is_floating_point() or not ((zero >= lowest) & (zero <= lowest + 255)).all():
        raise ValueError(f"{names[1]}: expected integers in [{lowest}, {lowest + 255}], got {zero.tolist()}")
    bad = ~x.isfinite()
    if bad.any():
        raise NotFinite(int(bad.reshape(-1).nonzero()[0])).named("input", x.shape)
    rows = x.detach().reshape(1, -1) if axis is None else x.detach().movedim(axis, 0).reshape(channels, -1)
    scale, zero = scale.to(x.device)[:, None], zero.to(x.device)[:, None]
    # the clip comes first, so that no float is too large for an integer
    codes = torch.round(rows * (1 / scale)).clamp(-512, 512).to(torch.int16) + zero.to(torch.int16)
    codes = (codes.clamp(lowest, lowest + 255) + shift).to(torch.int8)
    packed = _native.pack_codes(codes.cpu().contiguous(), qint8.kind).to(x.device)
    offset = (zero + shift + 128).to(torch.uint8)
    matrix = QMatrix(packed, scale.contiguous(), offset.contiguous(), rows.shape[1], qint8.kind, PER_CHANNEL)
    return QuantizedTensor(matrix, _SCHEME, x.shape, axis, dtype)
