"""A linear layer with a quantized weight."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _autograd, _ops, _static_ops
from .._native.launch import Launches, Sized, possible
from ..flow import Activation, Codes, QParams
from ..qtypes import ACTIVATIONS, QType, qint8, qtype_of
from ..scheme import GroupSize, Optimizer, Scheme
from . import storage
from .fixed_point import FixedPointOutput, resolve_requantization
from .outliers import Outliers, resolve_outliers
from .packed_weight import PackedWeight, float_weight
from .placing import apart
from .registry import register_module
from .static import LAUNCHES, StaticInput, epilogue, plain


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is Hugging Face's `Conv1D`: a linear layer with weight `[in, out]`. transformers is not imported."""
    cls = type(module)
    return cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"


@register_module(is_conv1d)
@register_module(nn.Linear)
class Linear(FixedPointOutput, StaticInput, PackedWeight, nn.Linear):
    """`nn.Linear` with weight `[out_features, in_features]` in int8, int4, int2 or float8.

    Made by `from_float` or `rquant.quantize`. Until `freeze` the float `weight` is a Parameter, quantized anew in each
    forward (straight-through gradients); then it is packed integers, and `weight` a read-only view.
    `activations=None`: float arithmetic. `activations=qint8`: each row of x becomes int8, exact int32 product. With
    float8 weights, or `activations` a float8 type, each row is rounded to the activations' type by its own scale and back,
    and multiplied in float arithmetic: the accuracy of the type, without its speed.
    `outliers=6.0`: columns of x in which some |x| of the batch is at least this are multiplied in float instead, with
    dequantized weights (LLM.int8()); `outliers=[3, 17]`: these columns, whose float weights are kept.
    Forward takes float32, float16 or bfloat16 `[..., in_features]`; the output has x's dtype. A row with NaN or infinity
    gives a row of NaN.
    """

    OPTIONS = ("activations", "outliers", "requantization", *StaticInput.OPTIONS)
    activations: QType | None
    outliers: float | tuple[int, ...] | None
    outlier_weight: Tensor | None
    """Of a frozen layer with fixed columns: their float weights, `[out_features, columns]`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        weights: QType | str = qint8,
        activations: QType | str | None = None,
        group_size: GroupSize = None,
        symmetric: bool | None = None,
        optimizer: str | Optimizer = "minmax",
        outliers: Outliers = None,
    ) -> None:
        scheme = Scheme.resolve(weights, group_size, symmetric, optimizer)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.begin(self.weight, scheme)
        self.activations = None if activations is None else qtype_of(activations, "activations", ACTIVATIONS)
        self.outliers = resolve_outliers(outliers, self._rounded(), in_features)
        self.register_buffer("outlier_weight", None)
        self.begin_static()

    @classmethod
    def from_float(
        cls,
        linear: nn.Module,
        weights: QType | str = qint8,
        activations: QType | str | None = None,
        group_size: GroupSize = None,
        symmetric: bool | None = None,
        optimizer: str | Optimizer = "minmax",
        outliers: Outliers = None,
    ) -> "Linear":
        """A frozen layer from an `nn.Linear` or a Hugging Face `Conv1D`, which stays as it is.

        `optimizer` as in `rquant.quantize`. Raises TypeError for another module, ValueError for NaN or infinity in the
        weight and for `outliers` that are neither a threshold nor columns.
        """
        scheme = Scheme.resolve(weights, group_size, symmetric, optimizer)
        layer = cls.wrap(linear, scheme, activations, outliers)
        layer.freeze()
        return apart(layer)

    @classmethod
    def wrap(  # type: ignore[override]
        cls,
        linear: nn.Module,
        scheme: Scheme,
        activations: QType | str | None = None,
        outliers: Outliers = None,
        requantization: Any = None,
        flow: bool | None = None,
        keep: int | None = None,
        calibrated: Sequence[str] | None = None,
    ) -> "Linear":
        """An unfrozen layer around the very Parameters of `linear` (a `Conv1D`'s weight is transposed)."""
        weight = float_weight(linear)
        if weight is None or not (is_conv1d(linear) or isinstance(linear, nn.Linear)):
            raise TypeError(
                f"linear: expected nn.Linear or transformers' Conv1D, got {type(linear).__name__}"
            )
        if is_conv1d(linear):
            weight = nn.Parameter(weight.detach().T.contiguous(), weight.requires_grad)
        n, k = weight.shape
        bias = linear._parameters.get("bias")
        # on meta: torch's __init__ would fill a float weight with random numbers for nothing
        layer = cls(
            k,
            n,
            bias is not None,
            "meta",
            weight.dtype,
            weights=scheme.qtype,
            activations=activations,
            outliers=outliers,
        )
        layer._parameters["bias"] = bias
        layer.begin(weight, scheme)
        layer.requantization = resolve_requantization(requantization)
        layer.expect(flow, keep, calibrated)
        layer.training = linear.training
        return layer

    @classmethod
    def matrix_of(cls, module: nn.Module, weight: Tensor) -> Tensor:
        """`weight`, transposed if it is a `Conv1D`'s."""
        return weight.T if is_conv1d(module) else weight

    def reset_parameters(self) -> None:
        """Torch's, but for a weight on meta, where random numbers cost time and are none."""
        if not self.weight.is_meta:
            super().reset_parameters()

    @property
    def weight_shape(self) -> tuple[int, int]:
        """`(out_features, in_features)`."""
        return self.out_features, self.in_features

    def _rounded(self) -> QType | None:
        """What activations become in the integer product, if there is one."""
        return None if self.scheme.qtype.is_floating_point else self.activations

    def fix_outliers(self, columns: Sequence[int]) -> None:
        """Multiply these columns of x in float from now on, whatever is in the others.

        Their weights are kept in float: those that the layer computes with now, so fix them before `freeze`. Raises
        ValueError for columns that are not in `[0, in_features)` and for a layer without int8 activations.
        """
        outliers = resolve_outliers(tuple(columns), self._rounded(), self.in_features)
        self.outlier_weight = self.dequantize()[:, outliers].contiguous() if self.frozen else None
        self.outliers = outliers

    def hold(self, held: storage.Held, like: Tensor | None = None) -> None:
        """As `PackedWeight.hold`; the columns that stay float are taken from the float weight, if it was there."""
        weight = self._parameters.get("weight")
        super().hold(held, like)
        if weight is not None and isinstance(self.outliers, tuple) and self.outlier_weight is None:
            self.outlier_weight = weight.detach()[:, self.outliers].contiguous()

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight `[n, k]` that the layer computes with, in float; by default of the compute dtype."""
        weight = super().dequantize(dtype)
        if not isinstance(self.outliers, tuple):
            return weight
        columns = list(self.outliers)
        kept = self.outlier_weight if self.frozen else self._parameters["weight"][:, columns]  # type: ignore[index]
        return _autograd.with_columns(weight, columns, kept)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *args: Any,
    ) -> None:
        key = prefix + "outlier_weight"
        if (
            isinstance(self.outliers, tuple)
            and self.outlier_weight is None
            and f"{prefix}weight_packed" in state_dict
        ):
            if key in state_dict:
                like = self.compute_like
                self.outlier_weight = like.new_empty(self.out_features, len(self.outliers))
            else:
                missing_keys.append(key)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *args)

    def forward(self, input: Any) -> Any:
        """`input @ weight.T + bias`; the argument has `nn.Linear`'s name, by which callers may give it.

        A calibrated layer also takes and may give an `Activation`.
        """
        if type(input) is Activation or self.activations is not None:
            if self._may_be_static() and self.statically():
                return self.receive(input)
            input = plain(input)
        parameters = self._parameters
        # `self.bias` is slow; but FSDP may have taken the parameter out of the dict and put a tensor in its place
        bias = parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401
        return self.multiply(input, bias)

    def _may_be_static(self) -> bool:
        rounded = self._rounded()  # by kind: comparing all of a QType has dynamo compile twice
        int8 = rounded is not None and rounded.kind == qint8.kind
        return int8 and self.outliers is None and self.in_features > 0

    def output_shape(self, shape: Sequence[int]) -> Sequence[int]:
        """See `flow.place.StaticLayer`."""
        return (*shape[:-1], self.out_features)

    def product(
        self, x: Codes, addend: Codes | None, lo: float, hi: float, to: QParams | None, dtype: torch.dtype
    ) -> Tensor:
        """See `flow.place.StaticLayer`."""
        if self.requantization is not None and self.may_be_fixed(addend, to):
            images = x.codes.reshape(-1, self.in_features, 1, 1)
            one = (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, False, (0, 0)
            out = self.fixed_product(x, images, one, lo, hi, to)  # type: ignore[arg-type]
            return out.reshape(*x.codes.shape[:-1], self.out_features)
        codes, bias, panels = x.codes, self.float_bias(), self._buffers.get(storage.PANELS)
        if panels is not None and possible(codes):
            added = None if addend is None else addend[:3]
            x3 = codes, x.scale, x.zero
            out = self._launches().product(self._sized, x3, panels, bias, added, lo, hi, to, dtype)
            if out is not None:
                return out
        bias, rest = self.constant_bias(), epilogue(addend, lo, hi, to, dtype)
        if codes.device.type != "cpu":
            *weight, _, kind, group_size = self.matrix()
            return _static_ops.linear_canonical_static(  # type: ignore[no-any-return]
                codes, x.scale, x.zero, *weight, kind, group_size, bias, *rest
            )
        return _static_ops.linear_static(  # type: ignore[no-any-return]
            codes, x.scale, x.zero, self.panels(), bias, self.out_features, *rest
        )

    def _launches(self) -> Launches:
        launches: Launches | None = self.__dict__.get(LAUNCHES)
        if launches is None or launches.geometry != (self.out_features,):
            launches = self.__dict__[LAUNCHES] = Launches((self.out_features,), torch.contiguous_format)
        return launches

    def _sized(self, shape: torch.Size) -> Sized:
        *rows, k = shape
        n = self.out_features
        sizes = (math.prod(rows), 1, 1, k, n, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0)
        return Sized(sizes, torch.Size((*rows, n)))

    def float_product(self, x: Tensor) -> Tensor:
        """See `flow.place.StaticLayer`."""
        return self.with_bias(lambda weight, bias: nn.functional.linear(x, weight, bias), x.dtype)

    def multiply(self, x: Tensor, bias: Tensor | None, scale: Tensor | None = None) -> Tensor:
        """`x @ weight.T + bias` with any bias, and of a frozen layer by ready-made activation scales if there are any.

        `scale`: float32, one a row of x or a single one for all.
        """
        buffers = self._buffers
        grad = torch.is_grad_enabled()
        grad_of_inputs = grad and (x.requires_grad or (bias is not None and bias.requires_grad))
        # a trace is checked without gradients and may be run with them: it has one op for both
        differentiable = grad_of_inputs or torch._C._is_tracing()
        integer = self.activations is not None
        if self.outliers is not None:
            return self._forward_with_outliers(x, grad, grad_of_inputs, differentiable)
        if integer and (self.activations.is_floating_point or self.scheme.qtype.is_floating_point):  # type: ignore[union-attr]
            integer = False
            if self.in_features:
                x = _autograd.round_rows(x, self.activations)  # type: ignore[arg-type]
        if self.scheme.qtype.is_cast:
            weight = self.dequantize(x.dtype)
            return nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
        if storage.PANELS in buffers:
            panels = buffers[storage.PANELS]
            if differentiable:
                return _autograd.linear(x, panels, bias, self.in_features, self.out_features, integer, scale)  # type: ignore[no-any-return]
            return _ops.checked_linear(x, panels, bias, self.in_features, self.out_features, integer, scale)  # type: ignore[no-any-return]
        if not self.frozen:
            weight = self.weight
            arguments = self._scheme_arguments()
            if self.prepared:
                return self._learning(x, bias, integer)
            if grad and (grad_of_inputs or weight.requires_grad):
                return _autograd.UnfrozenLinear.apply(x, weight, bias, arguments, integer)  # type: ignore[no-any-return]
            return _ops.linear_unfrozen(x, weight, bias, *arguments, integer)  # type: ignore[no-any-return]
        codes, scales, zero, *sizes = self.canonical()
        if differentiable:
            return _autograd.linear_canonical(x, codes, scales, zero, bias, *sizes, integer, scale)  # type: ignore[no-any-return]
        return _ops.linear_canonical(x, codes, scales, zero, bias, *sizes, integer, scale)  # type: ignore[no-any-return]

    def _learning(self, x: Tensor, bias: Tensor | None, integer: bool) -> Tensor:
        """Of a layer with scales that learn, or a BatchNorm inside: in training in float, else as deployed."""
        own = "batch_norm" in self._modules
        if not self.training:
            bias = self.float_bias() if own else bias
            return _ops.linear_unfrozen(x, self.float_matrix(), bias, *self._scheme_arguments(), integer)  # type: ignore[no-any-return]
        x = _autograd.round_rows(x, qint8) if integer else x
        if own:
            return self.float_product(x)
        return nn.functional.linear(x, self.dequantize(x.dtype), None if bias is None else bias.to(x.dtype))

    def _forward_with_outliers(
        self, x: Tensor, grad: bool, grad_of_inputs: bool, differentiable: bool
    ) -> Tensor:
        weight, bias = self._parameters.get("weight"), self._parameters["bias"]
        fixed = isinstance(self.outliers, tuple)
        chosen = (None, list(self.outliers)) if fixed else (self.outliers, None)  # type: ignore[arg-type]
        if weight is not None:
            arguments = self._scheme_arguments()
            if grad and (grad_of_inputs or weight.requires_grad):
                return _autograd.UnfrozenOutlierLinear.apply(x, weight, bias, arguments, *chosen)  # type: ignore[no-any-return]
            return _ops.linear_outliers_unfrozen(x, weight, bias, *arguments, *chosen)  # type: ignore[no-any-return]
        outliers = (*chosen, self.outlier_weight)
        ops: Any = _autograd if differentiable else _ops
        if storage.PANELS in self._buffers:
            panels, sizes = self._buffers[storage.PANELS], (self.in_features, self.out_features)
            return ops.linear_outliers(x, panels, bias, *sizes, *outliers)  # type: ignore[no-any-return]
        codes, scale, zero, *rest = self.canonical()
        return ops.linear_outliers_canonical(x, codes, scale, zero, bias, *rest, *outliers)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Sizes, scheme, activations, outliers."""
        shown = super().extra_repr()
        if self.activations is not None:
            shown += f", activations={self.activations.name}"
        if isinstance(self.outliers, tuple):
            shown += f", outliers={len(self.outliers)} columns"
        elif self.outliers is not None:
            shown += f", outliers={self.outliers}"
        return shown
