"""Quantized modules."""

from .attention import MultiheadAttention
from .container import Container
from .embedding import Embedding
from .embedding_bag import EmbeddingBag
from .experts import Experts
from .linear import Linear
from .packed_weight import PackedWeight, float_weight
from .registry import register_module
from .sorted_experts import Llama4Experts, ParallelExperts

__all__ = [
    "Container",
    "Embedding",
    "EmbeddingBag",
    "Experts",
    "Linear",
    "Llama4Experts",
    "MultiheadAttention",
    "PackedWeight",
    "ParallelExperts",
    "float_weight",
    "register_module",
]
