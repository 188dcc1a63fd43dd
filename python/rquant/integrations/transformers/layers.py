"""One packed layer while transformers loads.

Transformers makes non-persistent buffers anew while it loads, and so it would the packed tensors of a layer: until
`unshield` they pass for persistent ones.
"""

from torch import Tensor, nn

from ...nn import PackedWeight, storage
from ...serialize.modelmap import join


def shield(layer: PackedWeight) -> None:
    """Have the packed tensors pass for persistent buffers, and the layer for initialized unless it lacks its bias."""
    layer._non_persistent_buffers_set.difference_update(layer.held)
    bias = layer._parameters.get("bias")
    layer._is_hf_initialized = bias is None or getattr(bias, "_is_hf_initialized", False)


def unshield(layer: PackedWeight) -> None:
    """Undo `shield`."""
    layer.hold(layer.held)


def take_weight(layer: PackedWeight, weight: Tensor, transposed: bool) -> None:
    """Freeze `layer` to the float `weight` that was read for it. Raises ValueError for a wrong shape, NaN or infinity."""
    value = weight.T.contiguous() if transposed else weight
    if value.shape != layer.float_shape:
        raise ValueError(f"weight: expected shape {layer.float_shape}, got {tuple(value.shape)}")
    layer._parameters["weight"] = nn.Parameter(value, requires_grad=False)
    layer.freeze()
    shield(layer)


def pack(name: str, layer: PackedWeight) -> None:
    """Hold the canonical tensors that were read as this device wants them. Raises ValueError that names a bad one."""
    q = storage.checked(layer.held, join(name, ""), layer.weight_shape, layer.scheme)
    device = q.codes.device
    layer.hold(
        storage.hold(q, device, layer.panel_groups), like=layer.compute_like.new_empty(0, device=device)
    )
