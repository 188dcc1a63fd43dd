"""Devices that rquant has no kernels for: the reference in plain torch, which is said once."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

_told: set[str] = set()


def on_any_device(reference: Callable[..., Any]) -> Callable[..., Any]:
    """`reference` as an op's kernel: a device type's first use warns, tensors on several devices are a ValueError."""

    @functools.wraps(reference)
    def kernel(first: Tensor | list[Tensor], *others: Any) -> Any:
        device = first.device if isinstance(first, Tensor) else first[0].device
        for other in others:
            if isinstance(other, Tensor) and other.device != device:
                raise different(other.device, device)
        if device.type != "cpu" and device.type not in _told:
            _told.add(device.type)
            warnings.warn(
                f"rquant has no kernels for device {device.type!r}: its layers compute there by plain torch operations, "
                "with the same results but without the speed, and dequantize a weight for each call",
                stacklevel=2,
            )
        return reference(first, *others)

    return kernel


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
