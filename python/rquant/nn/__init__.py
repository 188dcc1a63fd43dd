"""Quantized modules."""

from .embedding import Embedding
from .linear import Linear
from .packed_weight import PackedWeight

__all__ = ["Embedding", "Linear", "PackedWeight"]
