"""torch.ao's observers by their names, for QConfigs; what they observe is done by `rquant.observers`."""

import functools
from typing import Any

import torch
from torch import Tensor

from ...nn.static import static_qparams
from ...observers import MSE, MinMax, MovingAverage, Observer
from ...observers.methods import Method
from ...qtypes import qint8


class ObserverBase:
    """`dtype` and `qscheme` are torch's; what rquant has no use for (`reduce_range`, `quant_min`, `eps`, ...) is accepted."""

    def __init__(
        self,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        **ignored: Any,
    ) -> None:
        self.dtype, self.qscheme = dtype, qscheme
        self.observer: Observer = self.make()

    def make(self) -> Observer:
        """A fresh observer of rquant's."""
        return MinMax()

    @classmethod
    def with_args(cls, **kwargs: Any) -> Any:
        """A factory with these arguments, which has `with_args` too."""
        return _partial(cls, **kwargs)

    def __call__(self, x: Tensor) -> Tensor:
        """See x, and return it."""
        self.observer.update(x.detach())
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale, float32 `[1]`, and zero point, int32 `[1]`, by which rquant rounds to [-127, 127]."""
        scale, zero = static_qparams(*self.observer.range(qint8, symmetric(self)), symmetric(self))
        return torch.tensor([scale]), torch.tensor([zero], dtype=torch.int32)


class MinMaxObserver(ObserverBase):
    """All that was seen."""


class PerChannelMinMaxObserver(MinMaxObserver):
    """For weights, which have a scale for each output channel in any case."""


class MovingAverageMinMaxObserver(ObserverBase):
    """Averages of the batches' ends: `m = m + averaging_constant * (x - m)`."""

    def __init__(self, averaging_constant: float = 0.01, **kwargs: Any) -> None:
        self.averaging_constant = averaging_constant
        super().__init__(**kwargs)

    def make(self) -> Observer:
        """With torch's constant."""
        return MovingAverage(1 - self.averaging_constant)


class MovingAveragePerChannelMinMaxObserver(MovingAverageMinMaxObserver):
    """As `PerChannelMinMaxObserver`."""


class HistogramObserver(ObserverBase):
    """A histogram, and the range of the least squared error on it."""

    def make(self) -> Observer:
        """Torch's searches by squared error, too."""
        return MSE()


class PlaceholderObserver(ObserverBase):
    """Observes nothing. `is_dynamic`: the range is each input's own."""

    def __init__(self, dtype: torch.dtype = torch.float32, is_dynamic: bool = False, **kwargs: Any) -> None:
        self.is_dynamic = is_dynamic
        super().__init__(dtype, **kwargs)


class _partial(functools.partial):  # type: ignore[type-arg]
    def with_args(self, **kwargs: Any) -> "_partial":
        return _partial(self, **kwargs)


default_observer = MinMaxObserver
default_histogram_observer = HistogramObserver
default_placeholder_observer = PlaceholderObserver
default_dynamic_quant_observer = PlaceholderObserver.with_args(dtype=torch.quint8, is_dynamic=True)
default_weight_observer = MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
default_per_channel_weight_observer = PerChannelMinMaxObserver.with_args(
    dtype=torch.qint8, qscheme=torch.per_channel_symmetric
)


@functools.cache  # so that layers with one constant have one method
def _moving_average(constant: float) -> Method:
    return lambda: MovingAverage(1 - constant)


_METHODS: dict[str, Any] = {
    "MovingAverageMinMaxObserver": lambda observer: _moving_average(observer.averaging_constant),
    "MinMaxObserver": lambda observer: MinMax,
    "HistogramObserver": lambda observer: MSE,
}


def method_of(factory: Any, where: str) -> Method:
    """The method of calibration that an activation's factory, torch's, ours or of a `rquant.observers.Observer`, stands for.

    Raises ValueError, naming `where`, for another.
    """
    made = factory()
    if isinstance(made, Observer):
        return factory  # type: ignore[no-any-return]
    made = getattr(made, "activation_post_process", made)  # inside a FakeQuantize
    if getattr(made, "is_dynamic", False):
        raise ValueError(f"{where}: expected an observer, got a dynamic one: that is quantize_dynamic")
    for cls in type(made).__mro__:
        if cls.__name__ in _METHODS:
            return _METHODS[cls.__name__](made)  # type: ignore[no-any-return]
    raise ValueError(
        f"{where}: expected {', '.join(sorted(_METHODS))} or a factory of rquant.observers, got {type(made).__name__}"
    )


def symmetric(observer: Any) -> bool:
    """Whether its zero point is 0."""
    return getattr(observer, "qscheme", None) in (torch.per_tensor_symmetric, torch.per_channel_symmetric)
