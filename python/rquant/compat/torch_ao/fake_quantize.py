"""torch.ao's `FakeQuantize` by its name, for QConfigs of training and for trying a rounding by itself."""

from typing import Any

import torch
from torch import Tensor

from ..._fake_quantize import fake_quantize_activations
from .observers import MovingAverageMinMaxObserver, ObserverBase, _partial


class FakeQuantize:
    """An observer, and the rounding that its range makes: `FakeQuantize.with_args(observer=..., **arguments of it)`.

    In a QConfig it means its observer: layers round by themselves. Called, it sees x and returns it as its codes read back,
    with gradients that are 1 inside the range and 0 outside. `quant_min` and `quant_max` are accepted, without meaning.
    """

    def __init__(self, observer: Any = MovingAverageMinMaxObserver, **arguments: Any) -> None:
        self.activation_post_process: ObserverBase = observer(**arguments)
        self.observing = self.rounding = True

    @property
    def dtype(self) -> torch.dtype:
        """The observer's."""
        return self.activation_post_process.dtype

    @property
    def qscheme(self) -> torch.qscheme:
        """The observer's."""
        return self.activation_post_process.qscheme

    @classmethod
    def with_args(cls, **kwargs: Any) -> Any:
        """A factory with these arguments, which has `with_args` too."""
        return _partial(cls, **kwargs)

    def enable_observer(self, enabled: bool = True) -> None:
        """Whether the range follows what is seen."""
        self.observing = enabled

    def disable_observer(self) -> None:
        """The range stays as it is."""
        self.enable_observer(False)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Whether x is rounded."""
        self.rounding = enabled

    def disable_fake_quant(self) -> None:
        """x is returned as it is."""
        self.enable_fake_quant(False)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The observer's scale and zero point."""
        return self.activation_post_process.calculate_qparams()

    def __call__(self, x: Tensor) -> Tensor:
        """x, seen and rounded."""
        if self.observing:
            self.activation_post_process(x)
        if not self.rounding:
            return x
        scale, zero = self.calculate_qparams()
        return fake_quantize_activations(x, scale.to(x.device), zero.to(x.device, torch.int8))
