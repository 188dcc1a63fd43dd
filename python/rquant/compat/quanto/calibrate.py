"""Calibration, of which dynamic activations need nothing but that the calls are accepted."""

import warnings
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ...nn import PackedWeight
from ...qtypes import INTEGERS, QType, qint8, qtype_of


class Calibration:
    """A context in which a quantized model sees samples: `with Calibration(momentum=0.9): model(samples)`.

    Nothing is recorded, and the model computes the same afterwards: quantized activations take each token's scale from
    the token itself, which is finer than any recorded range and needs no samples. `momentum` and `debug` therefore
    change nothing; nor does `streamline`, since outputs are never quantized. Warns if no quantized layer ran inside.

    Raises ValueError for a momentum outside [0, 1].
    """

    def __init__(self, momentum: float = 0.9, streamline: bool = True, debug: bool = False) -> None:
        if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not 0 <= momentum <= 1:
            raise ValueError(f"momentum: expected a number from 0 to 1, got {momentum!r}")
        self.momentum, self.streamline, self.debug = momentum, streamline, debug

    def __enter__(self) -> "Calibration":
        self._ran = False
        self._handle = register_module_forward_hook(self._see)
        return self

    def _see(self, module: nn.Module, args: Any, output: Any) -> None:
        self._ran = self._ran or isinstance(module, PackedWeight)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handle.remove()
        if kind is None and not self._ran:
            warnings.warn("Calibration: no quantized layer ran inside; call quantize first", stacklevel=2)


def absmax_scale(base: Tensor, qtype: QType | str = qint8, axis: int | None = None) -> Tensor:
    """`max|base| / qmax`: a scalar, or for each index of `axis` one, with the other dimensions kept as 1.

    Raises ValueError for a type that is not of integers.
    """
    qmax = qtype_of(qtype, "qtype", INTEGERS).qmax
    if axis is None:
        return base.abs().max() / qmax
    others = [dim for dim in range(base.dim()) if dim != axis % base.dim()]
    return torch.amax(base.abs(), others, keepdim=True) / qmax
