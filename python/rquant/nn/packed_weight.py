"""What quantized modules share: one weight `[n, k]`, first float and trainable, then frozen.

Frozen, it is held as `storage` says, in non-persistent buffers; `state_dict` and `load_state_dict` speak canonical.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import _autograd, optimize
from .._autograd import SchemeArguments
from .._native import NotFinite, QMatrix
from ..qtypes import QType
from ..scheme import Scheme
from . import storage
from .weight_view import WeightView

_LIKE = "_compute_like"


class PackedWeight(nn.Module):
    """Mixin before a torch module that has a Parameter `weight` of 2 dimensions, or of more that make a matrix.

    A subclass writes `wrap`, which calls `begin`, `weight_shape` and `forward`; `register_module` makes it known. One whose
    weight is not a matrix also writes `float_shape`, `matrix_of` and its inverse `from_matrix`.
    Its `forward` asks `dequantize()` for the float weight that counts, or calls an op on the `held` tensors.
    """

    scheme: Scheme
    OPTIONS: tuple[str, ...] = ()
    """Names of keywords of `wrap` and attributes of the layer, JSON types or a QType: saved, and set by rules."""
    panel_groups = 1
    """Of a convolution: its groups, where its panels are cut."""
    OWN = (_LIKE, *storage.NAMES)
    """Names of parameters and buffers that are how a layer works, not what it is."""

    def begin(self, weight: nn.Parameter, scheme: Scheme) -> None:
        """Start with this float weight, unfrozen."""
        self._parameters["weight"] = weight
        self.scheme = scheme

    @classmethod
    @abstractmethod
    def wrap(cls, module: nn.Module, scheme: Scheme, **options: Any) -> "PackedWeight":
        """An unfrozen layer around the very Parameters of `module`; its weight may be on meta. Options as in `OPTIONS`."""

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Why this `module`, of a type that the class is registered for, stays float; None if it need not."""
        return (
            None
            if module._parameters.get("weight") is not None
            else "its weight is computed (parametrization)"
        )

    def options(self) -> dict[str, Any]:
        """What `wrap` was given beside the scheme, in JSON types."""
        values = {name: getattr(self, name) for name in self.OPTIONS}
        return {name: value.name if isinstance(value, QType) else value for name, value in values.items()}

    @property
    @abstractmethod
    def weight_shape(self) -> tuple[int, int]:
        """`(n, k)`: rows are output features, or embeddings."""

    @property
    def float_shape(self) -> tuple[int, ...]:
        """Of the float weight; `weight_shape` unless that is not a matrix."""
        return self.weight_shape

    @classmethod
    def matrix_of(cls, module: nn.Module, weight: Tensor) -> Tensor:
        """The matrix `[n, k]` of `weight`, as a float `module` of the class's kind or the layer itself holds it."""
        return weight

    @classmethod
    def float_index(cls, module: nn.Module, shape: tuple[int, ...], index: int) -> int:
        """The flat index in a weight of `shape` that its matrix has at `index`."""
        indices = torch.arange(torch.Size(shape).numel()).reshape(shape)
        return int(cls.matrix_of(module, indices).reshape(-1)[index])

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix_of`: `[n, k]` as a weight of `float_shape`."""
        return matrix

    def panels(self) -> Tensor:
        """The weight as this machine's kernels read it: held if the layer is frozen, else quantized and packed anew."""
        if storage.PANELS in self._buffers:
            return self._buffers[storage.PANELS]  # type: ignore[return-value]
        cpu = torch.device("cpu")
        q = self.canonical() if self.frozen else storage.quantize(self.float_matrix(), self.scheme)
        return storage.hold(q.map(lambda t: t.to(cpu)), cpu, self.panel_groups)[storage.PANELS]

    def matrix(self) -> QMatrix:
        """The weight in canonical form where the layer is: held, if it is frozen and not on the CPU; else quantized anew."""
        return self.canonical() if self.frozen else storage.quantize(self.float_matrix(), self.scheme)

    def float_matrix(self) -> Tensor:
        """The float weight `[n, k]` that is rounded, with a BatchNorm folded into it that trains inside the layer."""
        matrix = self.matrix_of(self, self._parameters["weight"])  # type: ignore[arg-type]
        norm = self._modules.get("batch_norm")
        return matrix if norm is None else norm.fold_weight(matrix)  # type: ignore[operator, no-any-return]

    def float_bias(self) -> Tensor | None:
        """The bias that goes with it."""
        bias, norm = self._parameters["bias"], self._modules.get("batch_norm")
        return bias if norm is None else norm.fold_bias(bias)  # type: ignore[operator, no-any-return]

    def constant_bias(self) -> Tensor | None:
        """The same for products of codes, which have no gradients: their outputs must not seem to."""
        bias = self.float_bias()
        return bias.detach() if bias is not None and bias.requires_grad else bias

    def with_bias(self, multiply: Callable[[Tensor, Tensor | None], Tensor], dtype: torch.dtype) -> Tensor:
        """`multiply(weight, bias)` of the rounded weight in float, normalized if a BatchNorm trains inside the layer."""
        weight, norm = self.dequantize(dtype), self._modules.get("batch_norm")
        if norm is not None and norm.live:
            return norm(multiply(weight, None), self._parameters["bias"])  # type: ignore[no-any-return]
        bias = self.float_bias()
        return multiply(weight, None if bias is None else bias.to(dtype))

    @property
    def prepared(self) -> bool:
        """Whether something of `rquant.qat` trains beside the weight: its scales, or a BatchNorm."""
        return "weight_range" in self._modules or "batch_norm" in self._modules

    def settle(self) -> None:
        """End what trains beside the weight, before `freeze`: it becomes part of the layer."""
        norm = self._modules.pop("batch_norm", None)
        if norm is not None:
            weight, bias = self._parameters["weight"], self._parameters["bias"]
            with torch.no_grad():
                folded = norm.fold_bias(bias)  # type: ignore[operator]
                weight.copy_(self.from_matrix(norm.fold_weight(self.matrix_of(self, weight))))  # type: ignore[union-attr, arg-type, operator]
            self._parameters["bias"] = nn.Parameter(folded, weight.requires_grad)  # type: ignore[union-attr]
        if self._modules.pop("weight_range", None) is not None:
            self.scheme = replace(self.scheme, optimizer="lsq")

    @property
    def frozen(self) -> bool:
        """Whether the weight is integers by now."""
        return storage.PANELS in self._buffers or storage.CANONICAL[0] in self._buffers

    @property
    def compute_like(self) -> Tensor:
        """A tensor without elements, of the compute dtype and device."""
        like = self._parameters.get(
            _LIKE, self.__dict__.get(_LIKE)
        )  # FSDP puts a tensor in the parameter's place
        return like if like is not None else self._parameters["weight"].detach().new_empty(0)  # type: ignore[union-attr]

    def freeze(self) -> None:
        """Replace the float weight by packed integers; twice is once. Raises ValueError for NaN or infinity."""
        weight = self._parameters.get("weight")
        if weight is None:
            return
        try:
            q = (
                storage.empty(self.weight_shape, self.scheme)
                if weight.is_meta
                else storage.quantize(self.float_matrix(), self.scheme)
            )
        except NotFinite as bad:
            bad.index = self.float_index(self, weight.shape, bad.index)
            raise bad.named("weight", weight.shape) from None
        self.settle()
        self.hold(storage.hold(q, weight.device, self.panel_groups), like=weight)

    @property
    def held(self) -> storage.Held:
        """The tensors that are the frozen weight."""
        return {name: self._buffers[name] for name in storage.NAMES if name in self._buffers}  # type: ignore[misc]

    def hold(self, held: storage.Held, like: Tensor | None = None) -> None:
        """Freeze to these very tensors, as a tied layer does with its partner's; computes as `like` does."""
        weight = self._parameters.pop("weight", None)
        like = weight if like is None else like
        if like is not None:
            # Without elements: it follows `.to()` and `.half()`. A parameter, so that code which asks a model's parameters
            # for dtype and device (transformers' `model.dtype`) finds one when all else is packed.
            self._parameters[_LIKE] = nn.Parameter(like.detach().new_empty(0), requires_grad=False)
        for name in storage.NAMES:
            self._buffers.pop(name, None)
        self._buffers.update(held)
        self._non_persistent_buffers_set.update(held)

    def canonical(self) -> QMatrix:
        """The frozen weight in canonical form; unpacked anew on CPU."""
        return storage.canonical(self.held, self.weight_shape[1], self.scheme)

    def canonical_like(self) -> QMatrix:
        """`canonical` on the meta device: sizes and dtypes, nothing unpacked."""
        return storage.canonical_like(self.held, self.weight_shape, self.scheme)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight that the layer computes with, in float, of `float_shape`; by default of the compute dtype."""
        dtype = dtype or self.compute_like.dtype
        if self.frozen:
            return self.from_matrix(storage.dequantize(self.held, self.weight_shape, self.scheme, dtype))
        if (learned := self._modules.get("weight_range")) is not None:
            matrix = learned.fake_quantize(self.float_matrix(), self.scheme)  # type: ignore[operator]
            return self.from_matrix(matrix.to(dtype))
        return self.from_matrix(
            _autograd.fake_quantize(self.float_matrix(), self._scheme_arguments()).to(dtype)
        )

    def _scheme_arguments(self) -> SchemeArguments:
        scheme = self.scheme
        return scheme.kind, scheme.group_size, scheme.symmetric, optimize.key(scheme.optimizer)

    def _shows_view(self, name: str) -> bool:
        # only a frozen layer has it: while torch's __init__ still runs the name must look free
        return name == "weight" and (_LIKE in self.__dict__.get("_parameters", ()) or _LIKE in self.__dict__)

    def __getattr__(self, name: str) -> Any:
        if not self._shows_view(name):
            return super().__getattr__(name)
        # a traced graph takes no views of ours; what only asks for the dtype leaves the rest unused
        return self.dequantize() if torch.compiler.is_compiling() else WeightView(self)

    def __setattr__(self, name: str, value: Any) -> None:
        tie = (
            name == "weight" and isinstance(value, WeightView) and value.layer.float_shape == self.float_shape
        )
        if tie:
            self.scheme = value.layer.scheme
            self.hold(value.layer.held, None if self.frozen else value.layer.compute_like)
        elif not self._shows_view(name):
            super().__setattr__(name, value)
        else:
            raise AttributeError(
                "weight: frozen; load a state dict, or tie it to a frozen weight of its shape"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedWeight":
        held = self.held
        for name in held:
            del self._buffers[name]
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(held)
        device = self.compute_like.device
        if any(tensor.device != device for tensor in held.values()):
            self.hold(storage.convert(held, self.weight_shape[1], self.scheme, device, self.panel_groups))
        elif held:  # the memory may change (share_memory, to_empty), the dtype never
            self.hold({n: new if (new := fn(t)).dtype == t.dtype else t for n, t in held.items()})
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.frozen:  # unpickled, perhaps on another machine
            self.hold(storage.repacked(self.held, self.weight_shape[1], self.scheme, self.panel_groups))

    def stored_names(self) -> tuple[str, ...]:
        """State dict names of the frozen weight."""
        return storage.CANONICAL[: 1 if self.scheme.qtype.is_cast else 2 if self.scheme.symmetric else 3]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(prefix + _LIKE, None)
        if self.frozen:
            pairs = zip(storage.CANONICAL, self.canonical()[:3], strict=True)
            destination.update({prefix + name: tensor for name, tensor in pairs if tensor is not None})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """As torch's. Packed tensors freeze a layer that is not frozen yet; a bad one is an error that names it."""
        names = self.stored_names()
        given = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        missing: list[str] = []
        unexpected: list[str] = []
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected, error_msgs
        )
        missing = [key for key in missing if key != prefix + _LIKE]
        unexpected_keys += [key for key in unexpected if key.removeprefix(prefix) not in given]
        if not self.frozen and not given:
            missing_keys += missing
            return
        missing_keys += [key for key in missing if key != prefix + "weight"]
        missing_keys += [prefix + name for name in names if name not in given]
        if len(given) < len(names):
            return
        try:
            q = storage.checked(given, prefix, self.weight_shape, self.scheme)
        except ValueError as error:
            error_msgs.append(str(error))
            return
        like = self.compute_like
        if local_metadata.get("assign_to_params_buffers"):
            like = like.new_empty(0, device=q.codes.device)
        elif like.is_meta:
            return  # as torch does: copying into a meta tensor changes nothing
        self.hold(storage.reload(self.held, q, like.device, self.panel_groups), like)

    def extra_repr(self) -> str:
        """Torch's, and the scheme."""
        return f"{super().extra_repr()}, {self.scheme}{'' if self.frozen else ', unfrozen'}"


def float_weight(module: nn.Module) -> nn.Parameter | None:
    """The Parameter `weight` of a module; one without values, on meta, for a frozen layer."""
    if isinstance(module, PackedWeight) and module.frozen:
        return nn.Parameter(torch.empty(module.float_shape, dtype=module.compute_like.dtype, device="meta"))
    return module._parameters.get("weight")
