"""What `layer.weight` is after freeze: a float tensor to look at, with no memory of its own."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from .packed_weight import PackedWeight


class WeightView(Tensor):
    """Logical shape, compute dtype and device of a frozen layer's weight; any operation sees it dequantized.

    Writing to it raises TypeError. `dequantize()` gives the plain float tensor.
    """

    layer: "PackedWeight"
    _is_param = True
    """Torch's mark: `isinstance(view, nn.Parameter)`, as code that reads or ties a layer's `weight` expects."""
    _is_hf_initialized = True
    """transformers' mark: not to be filled with random numbers."""

    @staticmethod
    def __new__(cls, layer: "PackedWeight") -> "WeightView":
        like = layer.compute_like
        view = Tensor._make_wrapper_subclass(cls, layer.float_shape, dtype=like.dtype, device=like.device)
        view.layer = layer
        return view

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The float weight as a plain tensor, by default of the layer's compute dtype."""
        return self.layer.dequantize(dtype)

    # torch's own `data` would be a tensor without memory, and `data += x` lost without a word
    @property
    def data(self) -> "WeightView":  # type: ignore[override]
        """Another view, as read-only."""
        return WeightView(self.layer)

    @data.setter
    def data(self, value: Tensor) -> None:
        raise TypeError(f"weight: a frozen weight is read-only, got new data of shape {tuple(value.shape)}")

    # A real __torch_function__ keeps torch's fused transformer paths, which would read past the layer, away.
    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].layer)
        for i, argument in enumerate(func._schema.arguments):
            value = args[i] if i < len(args) else (kwargs or {}).get(argument.name)
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(value, cls):
                raise TypeError(
                    f"weight: expected an operation that reads, got {func}: a frozen weight is read-only"
                )
        args, kwargs = tree_map_only(
            cls, lambda view: view.layer.dequantize(view.dtype), (args, kwargs or {})
        )
        return func(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dequantize().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.dequantize()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"WeightView({self.layer.scheme}, shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"
