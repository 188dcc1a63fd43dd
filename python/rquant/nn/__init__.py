"""Quantized modules."""

from .attention import MultiheadAttention
from .container import Container
from .embedding import Embedding
from .embedding_bag import EmbeddingBag
from .experts import Experts
from .linear import Linear
from .packed_weight import PackedWeight, float_weight
from .registry import register_module

__all__ = [
    "Container",
    "Embedding",
    "EmbeddingBag",
    "Experts",
    "Linear",
    "MultiheadAttention",
    "PackedWeight",
    "float_weight",
    "register_module",
]
