"""int8 between layers: what stands for a float tensor while only its codes exist."""

from . import einops_backend as einops_backend
from .activation import Activation
from .floats import Floats
from .integers import Codes, Integers
from .place import Place, QParams
from .recording import Recorder
from .straight_through import StraightThrough, Traced, with_gradient_of

__all__ = [
    "Activation",
    "Codes",
    "Floats",
    "Integers",
    "Place",
    "QParams",
    "Recorder",
    "StraightThrough",
    "Traced",
    "with_gradient_of",
]
