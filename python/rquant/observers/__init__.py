"""Observers: they watch the values that pass a place in a model and say what range to quantize them by.

Each one takes batches as they come and keeps none of them but what its docstring says.
"""

from .cross_entropy import CrossEntropy
from .extent import MinMax, MovingAverage
from .histogram import MSE, Entropy, Histogram, Percentile
from .methods import METHODS, observer_of
from .observer import Observer
from .values import NotFinite

__all__ = [
    "METHODS",
    "MSE",
    "CrossEntropy",
    "Entropy",
    "Histogram",
    "MinMax",
    "MovingAverage",
    "NotFinite",
    "Observer",
    "Percentile",
    "observer_of",
]
