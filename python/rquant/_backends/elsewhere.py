"""Devices and ops that rquant has no kernels for: the reference in plain torch, which is said once."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

_told: set[object] = set()

_STATIC = (
    "a model with calibrated activations, or convolutions of int8, is the fastest on the CPU; on a GPU quantize its weights "
    "alone, and of linear layers activations='int8' without calibration"
)
_TRAINING = "freeze the model for inference; training needs no kernel of it"


def on_any_device(reference: Callable[..., Any]) -> Callable[..., Any]:
    """`reference`, named as its op, as the op's kernel: where it has none of its own its first use warns, on CUDA that of each
    op, on other types of device that of any; tensors on several devices are a ValueError."""
    op = reference.__name__

    @functools.wraps(reference)
    def kernel(first: Tensor | list[Tensor], *others: Any) -> Any:
        device = first.device if isinstance(first, Tensor) else first[0].device
        for other in others:
            if isinstance(other, Tensor) and other.device != device:
                raise different(other.device, device)
        if device.type == "cuda":
            tell(op, "there is no CUDA kernel of it yet", _STATIC if op.endswith("_static") else _TRAINING)
        elif device.type != "cpu" and device.type not in _told:
            _told.add(device.type)
            warnings.warn(
                f"rquant has no kernels for device {device.type!r}: its layers compute there by plain torch operations, "
                "with the same results but without the speed, and dequantize a weight for each call",
                stacklevel=2,
            )
        return reference(first, *others)

    return kernel


def tell(op: str, reason: str, remedy: str) -> None:
    """Warn, once for a cause, that `op` does not run in a kernel of ours on CUDA: why, and what would help."""
    if (op, reason) not in _told:
        _told.add((op, reason))
        warnings.warn(
            f"rquant::{op} computes on CUDA by plain torch operations, with the same results but without the speed: "
            f"{reason}; {remedy}",
            stacklevel=3,
        )


def check_devices(first: Tensor, *others: Any) -> None:
    """Raise ValueError unless the tensors among `others` are on the device of `first`."""
    for other in others:
        if isinstance(other, Tensor) and other.device != first.device:
            raise different(other.device, first.device)


def only_on_cpu(x: Tensor, panels: Tensor, *_: object) -> Tensor:
    """The kernel of an op on panels for x on another device."""
    raise different(panels.device, x.device)


def different(expected: object, got: object) -> ValueError:
    """x or ids on a device where the weight is not."""
    return ValueError(f"x: expected a tensor on {expected}, where the weight is, got {got}")
