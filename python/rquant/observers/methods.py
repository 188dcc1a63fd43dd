"""Observers by name."""

from collections.abc import Callable

from .cross_entropy import CrossEntropy
from .extent import MinMax, MovingAverage
from .histogram import MSE, Entropy, Percentile
from .observer import Observer

Method = str | Callable[[], Observer]

METHODS: dict[str, Callable[[], Observer]] = {
    "minmax": MinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "mse": MSE,
    "entropy": Entropy,
    "cross_entropy": CrossEntropy,
}
"""The names that `rquant.Calibration` knows."""


def observer_of(method: Method, argument: str = "method") -> Observer:
    """A fresh observer of a name or from a factory. Raises ValueError, naming the argument, for what is neither."""
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(
                f"{argument}: expected one of {', '.join(METHODS)}, or a factory of observers, got {method!r}"
            )
        return METHODS[method]()
    made = method() if callable(method) else method
    if not callable(method) or not isinstance(made, Observer):
        raise ValueError(f"{argument}: expected a name or a factory of observers, got {made!r}")
    return made
