"""Convolutions with quantized weights: `Conv1d`, `Conv2d`, `ConvTranspose1d`, `ConvTranspose2d`."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import _autograd, _ops, _static_ops
from .._native.launch import Launches, Sized, possible
from ..flow import Codes, QParams, with_gradient_of
from ..qtypes import ACTIVATIONS, QType, qint8, qtype_of
from ..scheme import GroupSize, Optimizer, Scheme
from .fixed_point import FixedPointOutput, resolve_requantization
from .packed_weight import PackedWeight, float_weight
from .placing import apart
from .registry import register_module
from .static import FLOATS, INTEGERS, LAUNCHES, StaticInput, channels_last, epilogue, plain
from .storage import PANELS


class _Conv(FixedPointOutput, StaticInput, PackedWeight):
    """What convolutions share. The weight is quantized as the matrix `[out_channels, kernel * in_channels / groups]`, with a
    position's channels side by side: groups of a scale run over channels first.
    """

    OPTIONS = ("activations", "requantization", *StaticInput.OPTIONS)
    FLOAT: ClassVar[type[nn.Module]]
    activations: QType | None
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    transposed: bool
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    @classmethod
    def from_float(
        cls,
        conv: nn.Module,
        weights: QType | str = qint8,
        activations: QType | str | None = None,
        group_size: GroupSize = None,
        symmetric: bool | None = None,
        optimizer: str | Optimizer = "minmax",
    ) -> Any:
        """A frozen layer from the float one, which stays as it is.

        Raises TypeError for another module, ValueError for NaN or infinity in the weight.
        """
        layer = cls.wrap(conv, Scheme.resolve(weights, group_size, symmetric, optimizer), activations)
        layer.freeze()
        return apart(layer)

    @classmethod
    def wrap(  # type: ignore[override]
        cls,
        conv: nn.Module,
        scheme: Scheme,
        activations: QType | str | None = None,
        requantization: Any = None,
        flow: bool | None = None,
        keep: int | None = None,
        calibrated: Sequence[str] | None = None,
    ) -> Any:
        """An unfrozen layer around the very Parameters of `conv`."""
        weight = float_weight(conv)
        if weight is None or not isinstance(conv, cls.FLOAT):
            raise TypeError(f"conv: expected nn.{cls.FLOAT.__name__}, got {type(conv).__name__}")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        # sizes and what torch derives of them; hooks and children are the caller's matter
        layer.__dict__.update({k: v for k, v in conv.__dict__.items() if k not in nn.Module().__dict__})
        layer._parameters["bias"] = conv._parameters.get("bias")  # type: ignore[assignment]
        layer.begin(weight, scheme)
        layer.begin_static()
        layer.activations = None if activations is None else qtype_of(activations, "activations", ACTIVATIONS)
        layer.requantization = resolve_requantization(requantization)
        layer.expect(flow, keep, calibrated)
        layer.training = conv.training
        return layer

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Why this module stays float; None if it need not."""
        weight = module._parameters.get("weight")
        empty = weight is not None and 0 in weight.shape
        return super().refusal(module) or ("no elements" if empty else None)

    @property
    def weight_shape(self) -> tuple[int, int]:
        """`(out_channels, kernel * in_channels / groups)`."""
        kernel = torch.Size(self.kernel_size).numel()
        return self.out_channels, kernel * (self.in_channels // self.groups)

    @property
    def panel_groups(self) -> int:  # type: ignore[override]
        """As torch's `groups`."""
        return self.groups

    @property
    def float_shape(self) -> tuple[int, ...]:
        """As torch's."""
        if self.transposed:
            return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @classmethod
    def matrix_of(cls, module: nn.Module, weight: Tensor) -> Tensor:
        """The 2-D form of a float weight."""
        if module.transposed:
            weight = weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
        return weight.movedim(1, -1).flatten(1)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """A matrix as torch's weight."""
        weight = matrix.unflatten(1, (*self.kernel_size, -1)).movedim(-1, 1)
        if self.transposed:
            weight = weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        return weight

    def forward(self, input: Any, output_size: list[int] | None = None) -> Any:
        """As torch's; a calibrated layer also takes and may give an `Activation`."""
        activations = self.activations
        int8 = activations is not None and activations.kind == qint8.kind
        integer = int8 and not self.scheme.qtype.is_floating_point
        if integer and output_size is None and self.statically():
            if len(input.shape) == len(self.kernel_size) + 1:
                return self.forward(input.unsqueeze(0)).squeeze(0)
            return self.receive(input if self.padding_mode == "zeros" else self._padded(input))
        x = plain(input)
        if not integer or output_size is not None or (arithmetic := self.arithmetic(x)) is FLOATS:
            return self._rounded_forward(x, output_size)
        if arithmetic is INTEGERS:
            return self._dynamic(self._padded(x))
        return with_gradient_of(self._dynamic(self._padded(x.detach())), self._rounded_forward(x))

    def _rounded_forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """In float, x rounded as it is in integers."""
        if self.activations is not None:
            shape = x.shape
            x = _autograd.round_rows(x.flatten(-len(self.kernel_size) - 1), self.activations).reshape(shape)
        return self._float_forward(x, output_size)

    def _padded(self, x: Any) -> Any:
        """With `padding_mode`'s borders, where those are not zeros."""
        if self.padding_mode == "zeros":
            return x
        return nn.functional.pad(plain(x), self._reversed_padding_repeated_twice, self.padding_mode)

    def _float_forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        dims = len(self.kernel_size)
        if not self.transposed:
            return self.with_bias(lambda weight, bias: self._conv_forward(x, weight, bias), x.dtype)  # type: ignore[operator]
        extra = self._output_padding(  # type: ignore[operator]
            x, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation
        )
        conv = nn.functional.conv_transpose1d if dims == 1 else nn.functional.conv_transpose2d
        rest = self.stride, self.padding, extra, self.groups, self.dilation
        return self.with_bias(lambda weight, bias: conv(x, weight, bias, *rest), x.dtype)

    def float_product(self, x: Tensor) -> Tensor:
        """See `flow.place.StaticLayer`; borders other than zeros are there already."""
        if self.padding_mode == "zeros":
            return self._float_forward(x)
        conv = nn.functional.conv1d if len(self.kernel_size) == 1 else nn.functional.conv2d
        rest = self.stride, 0, self.dilation, self.groups
        return self.with_bias(lambda weight, bias: conv(x, weight, bias, *rest), x.dtype)

    def _geometry(self) -> tuple[Any, ...]:
        """Arguments of `conv_static` from `kernel` on: in two dimensions, borders as top, left, bottom, right."""

        def two(values: Sequence[int], missing: int) -> tuple[int, ...]:
            return (missing, *values) if len(values) == 1 else tuple(values)

        borders = (0, 0, 0, 0)
        if self.padding_mode == "zeros":
            around = list(self._reversed_padding_repeated_twice)  # left, right, top, bottom
            left, right, top, bottom = (*around, 0, 0)[:4]
            borders = (top, left, bottom, right)
        extra = two(self.output_padding, 0)
        return (
            two(self.kernel_size, 1), two(self.stride, 1), borders, two(self.dilation, 1), self.groups,
            self.transposed, extra,
        )  # fmt: skip

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `flow.place.StaticLayer`."""
        if torch.compiler.is_compiling():  # sizes may be symbols
            return self._output_shape(shape, self._geometry())
        known = shape if type(shape) is torch.Size else torch.Size(shape)
        return self._launches().sized(known, self._sized).shape

    def _output_shape(self, shape: Sequence[int], geometry: tuple[Any, ...]) -> tuple[int, ...]:
        kernel, stride, borders, dilation, _, transposed, extra = geometry
        size = (1, *shape[2:]) if len(shape) == 3 else shape[2:]
        out = _static_ops.conv_shape(size, kernel, stride, borders, dilation, transposed, extra)
        return (shape[0], self.out_channels, *out[4 - len(shape) :])

    def _launches(self) -> Launches:
        """Those of the geometry that the layer has now."""
        geometry = (
            self.kernel_size, self.stride, self._reversed_padding_repeated_twice, self.padding_mode, self.dilation,
            self.groups, self.transposed, self.output_padding, self.out_channels,
        )  # fmt: skip
        launches: Launches | None = self.__dict__.get(LAUNCHES)
        if launches is None or launches.geometry != geometry:
            # a copy: lists may change in place
            launches = self.__dict__[LAUNCHES] = Launches(deepcopy(geometry), torch.channels_last)
        return launches

    def _sized(self, shape: torch.Size) -> Sized:
        geometry = kernel, stride, borders, dilation, groups, transposed, extra = self._geometry()
        size = (1, *shape[2:]) if len(shape) == 3 else tuple(shape[2:])
        sizes = (
            shape[0], *size, shape[1], self.out_channels, *kernel, *stride, *borders, *dilation, groups, int(transposed),
            *extra,
        )  # fmt: skip
        return Sized(sizes, torch.Size(self._output_shape(shape, geometry)))

    def _convolve(self, x: Tensor, scale: Tensor, zero: Tensor, added: Any, rest: tuple[Any, ...]) -> Tensor:
        flat = x.dim() == 3
        if flat:
            x, added = (t if t is None else t.unsqueeze(2) for t in (x, added))
        tail = (self.constant_bias(), self.out_channels, *self._geometry(), added, *rest)
        if x.device.type == "cpu":
            out = _static_ops.conv_static(x, scale, zero, self.panels(), *tail)
        else:
            *weight, _, kind, group_size = self.matrix()
            out = _static_ops.conv_canonical_static(x, scale, zero, *weight, kind, group_size, *tail)
        return out.squeeze(2) if flat else out  # type: ignore[no-any-return]

    def product(
        self, x: Codes, addend: Codes | None, lo: float, hi: float, to: QParams | None, dtype: torch.dtype
    ) -> Tensor:
        """See `flow.place.StaticLayer`."""
        if self.requantization is not None and self.may_be_fixed(addend, to):
            flat = x.codes.dim() == 3
            images = x.codes.unsqueeze(2) if flat else x.codes
            out = self.fixed_product(x, images, self._geometry(), lo, hi, to)  # type: ignore[arg-type]
            return out.squeeze(2) if flat else out
        panels = self._buffers.get(PANELS)
        if panels is not None and possible(x.codes) and len(x.codes.shape) == 4:
            added, bias = None if addend is None else addend[:3], self.float_bias()
            # its geometry was looked at when the input came
            launches = self.__dict__.get(LAUNCHES) or self._launches()
            out = launches.product(self._sized, x[:3], panels, bias, added, lo, hi, to, dtype)
            if out is not None:
                return out
        added, *rest = epilogue(addend, lo, hi, to, dtype)
        return self._convolve(x.codes, x.scale, x.zero, added, tuple(rest))

    def _dynamic(self, x: Tensor) -> Tensor:
        """Each sample by a scale of its own, exact sums in int32; a sample with NaN or infinity gives NaN."""
        batched = x.dim() == len(self.kernel_size) + 2
        x = x if batched else x.unsqueeze(0)
        rows = x.movedim(1, -1)
        codes, scale = _ops.quantize_rows(rows.flatten(1))
        finite = scale.isfinite()
        codes = codes.reshape(rows.shape).movedim(-1, 1)
        zero = torch.zeros(1, dtype=torch.int8, device=x.device)
        rest = (None, None, None, None, None, None, x.dtype)
        out = self._convolve(codes, torch.where(finite, scale, 1.0), zero, None, rest)
        out = torch.where(finite.reshape(-1, *[1] * (out.dim() - 1)), out, torch.nan)
        out = out if channels_last(x) else out.contiguous()
        return out if batched else out.squeeze(0)

    def extra_repr(self) -> str:
        """Torch's, and the scheme."""
        shown = super().extra_repr()
        return shown if self.activations is None else f"{shown}, activations={self.activations.name}"


@register_module(nn.Conv1d)
class Conv1d(_Conv, nn.Conv1d):
    """`nn.Conv1d` with a weight in int8, int4, int2 or float8.

    `activations=None`: float arithmetic with the dequantized weight. `activations=qint8`: exact integer products; each
    sample by a scale of its own until calibrated, then by one scale for all.
    """

    FLOAT = nn.Conv1d


@register_module(nn.Conv2d)
class Conv2d(_Conv, nn.Conv2d):
    """`nn.Conv2d`, as `Conv1d`."""

    FLOAT = nn.Conv2d


@register_module(nn.ConvTranspose1d)
class ConvTranspose1d(_Conv, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d`, as `Conv1d`; with `output_size` given it computes in float."""

    FLOAT = nn.ConvTranspose1d


@register_module(nn.ConvTranspose2d)
class ConvTranspose2d(_Conv, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d`, as `ConvTranspose1d`."""

    FLOAT = nn.ConvTranspose2d
