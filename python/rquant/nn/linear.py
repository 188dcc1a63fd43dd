"""A linear layer with a quantized weight."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import _autograd, _ops
from ..qtypes import QType, qint8, qtype_of
from ..scheme import Scheme
from . import storage
from .packed_weight import PackedWeight, float_weight
from .registry import register_module


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is Hugging Face's `Conv1D`: a linear layer with weight `[in, out]`. transformers is not imported."""
    cls = type(module)
    return cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"


@register_module(is_conv1d)
@register_module(nn.Linear)
class Linear(PackedWeight, nn.Linear):
    """`nn.Linear` with weight `[out_features, in_features]` in int8, int4 or int2.

    Made by `from_float` or `rquant.quantize`. Until `freeze` the float `weight` is a Parameter, quantized anew in each
    forward (straight-through gradients); then it is packed integers, and `weight` a read-only view.
    `activations=None`: float arithmetic. `activations=qint8`: each row of x becomes int8, exact int32 product.
    Forward takes float32, float16 or bfloat16 `[..., in_features]`; the output has x's dtype. A row with NaN or infinity
    gives a row of NaN.
    """

    OPTIONS = ("activations",)
    activations: QType | None

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
        group_size: int | None = None,
        symmetric: bool | None = None,
    ) -> None:
        scheme = Scheme.resolve(weights, group_size, symmetric)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.begin(self.weight, scheme)
        self.activations = None if activations is None else qtype_of(activations, "activations", (qint8,))

    @classmethod
    def from_float(
        cls,
        linear: nn.Module,
        weights: QType | str = qint8,
        activations: QType | str | None = None,
        group_size: int | None = None,
        symmetric: bool | None = None,
    ) -> "Linear":
        """A frozen layer from an `nn.Linear` or a Hugging Face `Conv1D`, which stays as it is.

        Raises TypeError for another module, ValueError for NaN or infinity in the weight.
        """
        layer = cls.wrap(linear, Scheme.resolve(weights, group_size, symmetric), activations)
        layer.freeze()
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach().clone(), layer.bias.requires_grad)
        return layer

    @classmethod
    def wrap(  # type: ignore[override]
        cls, linear: nn.Module, scheme: Scheme, activations: QType | str | None = None
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
            k, n, bias is not None, "meta", weight.dtype, weights=scheme.qtype, activations=activations
        )
        layer._parameters["bias"] = bias
        layer.begin(weight, scheme)
        layer.training = linear.training
        return layer

    def reset_parameters(self) -> None:
        """Torch's, but for a weight on meta, where random numbers cost time and are none."""
        if not self.weight.is_meta:
            super().reset_parameters()

    @property
    def weight_shape(self) -> tuple[int, int]:
        """`(out_features, in_features)`."""
        return self.out_features, self.in_features

    def forward(self, x: Tensor) -> Tensor:
        """`x @ weight.T + bias`."""
        parameters = self._parameters
        # `self.bias` is slow; but FSDP may have taken the parameter out of the dict and put a tensor in its place
        bias = parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401
        return self.multiply(x, bias)

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
        if storage.PANELS in buffers:
            panels = buffers[storage.PANELS]
            if differentiable:
                return _autograd.linear(x, panels, bias, self.in_features, self.out_features, integer, scale)  # type: ignore[no-any-return]
            return _ops.checked_linear(x, panels, bias, self.in_features, self.out_features, integer, scale)  # type: ignore[no-any-return]
        if not self.frozen:
            weight = self.weight
            arguments = self._scheme_arguments()
            if grad and (grad_of_inputs or weight.requires_grad):
                return _autograd.UnfrozenLinear.apply(x, weight, bias, arguments, integer)  # type: ignore[no-any-return]
            return _ops.linear_unfrozen(x, weight, bias, *arguments, integer)  # type: ignore[no-any-return]
        codes, scales, zero, *sizes = self.canonical()
        if differentiable:
            return _autograd.linear_canonical(x, codes, scales, zero, bias, *sizes, integer, scale)  # type: ignore[no-any-return]
        return _ops.linear_canonical(x, codes, scales, zero, bias, *sizes, integer, scale)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Sizes, scheme, activations."""
        return super().extra_repr() + (
            "" if self.activations is None else f", activations={self.activations.name}"
        )
