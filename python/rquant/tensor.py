"""One tensor: `quantize_tensor` and the `QTensor` it makes; absmax and zero-point, the two textbook schemes."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import _native, _ops
from ._native import NotFinite, QMatrix, Range
from .optimize import choose
from .qtypes import QType, qtype_of
from .scheme import OPTIMIZERS, PER_CHANNEL, GroupSize, Optimizer, Scheme


@dataclass(frozen=True, eq=False)
class QTensor:
    """A quantized tensor of `shape`: `x ≈ S * (q - Z)`.

    Kept as a matrix: one row for each index of `axis`, or a single row if axis is None. `scale` and `zero_point` are
    `[rows, groups]`.
    """

    matrix: QMatrix
    scheme: Scheme
    shape: torch.Size
    axis: int | None

    @property
    def qtype(self) -> QType:
        """The storage type."""
        return self.scheme.qtype

    @property
    def scale(self) -> Tensor:
        """S, float32 or float16 `[rows, groups]`."""
        return self.matrix.scale  # type: ignore[no-any-return]

    @property
    def zero_point(self) -> Tensor:
        """The plain Z of the formula `[rows, groups]`: int8, zeros if symmetric; or float16, if it may be fractional."""
        zero = self.matrix.zero_point
        if zero is None:
            return torch.zeros(self.scale.shape, dtype=torch.int8, device=self.scale.device)
        if zero.dtype == torch.float16:
            return zero  # type: ignore[no-any-return]
        return (zero.to(torch.int16) - (1 << (self.scheme.bits - 1))).to(torch.int8)  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """Where codes, scales and zero points are."""
        return self.matrix.codes.device  # type: ignore[no-any-return]

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return self.matrix.nbytes

    def int_repr(self) -> Tensor:
        """The codes of `shape`: signed integers in int8; of a float8 type, torch's tensor of it."""
        if self.qtype.is_floating_point:
            codes = self.matrix.codes[:, : self.matrix.cols].contiguous()
            return self._shaped(codes).view(getattr(torch, self.qtype.name[1:]))
        return self._shaped(_native.unpack_codes(self.to("cpu").matrix).to(self.device))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """`S * (q - Z)` of `shape`: computed in float32, then rounded once to `dtype`."""
        computed = dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float32
        return self._shaped(_ops.dequantize_canonical(*self.matrix, computed).to(dtype))

    def to(self, device: torch.device | str) -> "QTensor":
        """The same on another device."""
        return replace(self, matrix=self.matrix.map(lambda t: t.to(device)))

    def qscheme(self) -> torch.qscheme:
        """Torch's name of the scheme. Torch's names, this and the following, are for what torch can say: not for groups."""
        if self.matrix.scale.shape[1] != 1:
            raise ValueError(f"qscheme: expected one scale a channel or tensor, got {self.scheme}")
        if self.zero_point.is_floating_point():
            return torch.per_channel_affine_float_qparams
        return torch.per_tensor_affine if self.axis is None else torch.per_channel_affine

    def q_scale(self) -> float:
        """S of a tensor quantized with `axis=None`. Raises ValueError for another."""
        self._expect("q_scale", torch.per_tensor_affine)
        return self.scale.item()

    def q_zero_point(self) -> int:
        """Z of a tensor quantized with `axis=None`. Raises ValueError for another."""
        self._expect("q_zero_point", torch.per_tensor_affine)
        return int(self.zero_point.item())

    def q_per_channel_scales(self) -> Tensor:
        """S of each channel, float64 `[channels]` as torch has it. Raises ValueError for one scale in all, or groups."""
        self._expect("q_per_channel_scales", torch.per_channel_affine, torch.per_channel_affine_float_qparams)
        return self.scale.reshape(-1).double()

    def q_per_channel_zero_points(self) -> Tensor:
        """Z of each channel `[channels]`: int64, or float64 where it is fractional. Raises as `q_per_channel_scales`."""
        self._expect(
            "q_per_channel_zero_points", torch.per_channel_affine, torch.per_channel_affine_float_qparams
        )
        zero = self.zero_point.reshape(-1)
        return zero.double() if zero.is_floating_point() else zero.long()

    def q_per_channel_axis(self) -> int:
        """The dimension of the channels. Raises as `q_per_channel_scales`."""
        self._expect("q_per_channel_axis", torch.per_channel_affine, torch.per_channel_affine_float_qparams)
        return self.axis  # type: ignore[return-value]

    def _expect(self, name: str, *schemes: torch.qscheme) -> None:
        if (got := self.qscheme()) not in schemes:
            raise ValueError(f"{name}: expected {' or '.join(map(str, schemes))}, got {got}")

    def _shaped(self, rows: Tensor) -> Tensor:
        if self.axis is None:
            return rows.reshape(self.shape)
        front = [self.shape[self.axis], *self.shape[: self.axis], *self.shape[self.axis + 1 :]]
        return rows.reshape(front).movedim(0, self.axis).contiguous()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.scheme}, shape={tuple(self.shape)}, axis={self.axis}, device={self.device})"


def quantize_tensor(
    x: Tensor,
    qtype: QType | str,
    symmetric: bool | None = None,
    axis: int | None = 0,
    group_size: GroupSize = None,
    range: Range | Optimizer = "minmax",
) -> QTensor:
    """Quantize `x`, float32, float16 or bfloat16 of any shape, with scales of its own for each index of `axis`.

    `axis=None`: one scale for the whole tensor. `group_size`: None is the type's default (qint8 and float8 -1, qint4 64, qint2 32),
    -1 one group a channel, (r, c) one for r channels and c elements (-1: all); groups run along the other dimensions, flattened. `range`: one (lo, hi) for all, beyond which
    values are clipped, or what `rquant.quantize` takes as `optimizer`: "minmax"; "absmax", [-a, a] of each group; "mse", the
    least squared error; "hqq"; an object. Ranges are widened to contain 0, which comes back exactly unless zero points are
    fractional. Raises ValueError for another dtype, no elements, NaN or infinity (with its index).
    """
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: expected a tensor of float32, float16 or bfloat16, got {got}")
    if not x.numel():
        raise ValueError(f"x: expected at least one element, got shape {tuple(x.shape)}")
    qtype = qtype_of(qtype, "qtype")
    if axis is None:
        if group_size not in (None, PER_CHANNEL):
            raise ValueError(f"group_size: expected None or -1 with axis=None (per tensor), got {group_size}")
        group_size = PER_CHANNEL
    elif not -x.dim() <= axis < x.dim():
        raise ValueError(f"axis: expected None or a dimension of shape {tuple(x.shape)}, got {axis}")
    else:
        axis %= x.dim()
    if isinstance(range, str) and range not in OPTIMIZERS:
        raise ValueError(
            f"range: expected (lo, hi), an object or one of {', '.join(OPTIMIZERS)}, got {range!r}"
        )
    scheme = Scheme.resolve(qtype, group_size, symmetric, "minmax" if isinstance(range, tuple) else range)
    source = x.detach()
    rows = source.reshape(1, -1) if axis is None else source.movedim(axis, 0).reshape(x.shape[axis], -1)
    try:
        rows = rows.cpu().contiguous()
        if isinstance(range, tuple):
            q = _native.quantize(rows, scheme.kind, scheme.group_size, scheme.symmetric, range)
        else:
            q = choose(rows, scheme)
    except NotFinite as bad:
        flat = torch.arange(x.numel()).reshape(x.shape)  # where in x the first bad element of the rows lies
        flat = flat.reshape(1, -1) if axis is None else flat.movedim(axis, 0).reshape(rows.shape)
        raise NotFinite(int(flat.reshape(-1)[bad.index])).named("x", x.shape) from None
    return QTensor(q, scheme, x.shape, axis).to(x.device)


def _finite_float64(x: Tensor) -> Tensor:
    good = x.detach().isfinite()
    if not good.all():
        raise NotFinite(int((~good).reshape(-1).nonzero()[0])).named("x", x.shape)
    return x.detach().double()


def absmax_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """`scale = 127 / max|x|`, `q = round(scale * x)`: (int8 tensor, dequantized tensor of x's dtype).

    Per tensor and symmetric, computed in float64 (Dettmers et al. 2022, <https://arxiv.org/abs/2208.07339>). Zeros stay
    zeros. Raises ValueError for NaN or infinity.
    """
    values = _finite_float64(x)
    most = values.abs().max().item() if x.numel() else 0.0
    scale = 127.0 / most if most else 1.0
    q = (values * scale).round()
    return q.to(torch.int8), (q / scale).to(x.dtype)


def zeropoint_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """`scale = 255 / (max - min)` (1 for a constant), `z = round(-scale * min - 128)`, `q = clip(round(scale * x + z))`.

    (int8 tensor, dequantized tensor of x's dtype); per tensor, computed in float64. The range is not widened to contain 0.
    Raises ValueError for NaN or infinity.
    """
    values = _finite_float64(x)
    lo, hi = (values.min().item(), values.max().item()) if x.numel() else (0.0, 0.0)
    scale = 255.0 / ((hi - lo) or 255.0)
    zero = float(round(-scale * lo - 128))
    q = (values * scale + zero).round().clamp(-128, 127)
    return q.to(torch.int8), ((q - zero) / scale).to(x.dtype)


__all__ = ["QTensor", "absmax_quantize", "quantize_tensor", "zeropoint_quantize"]
