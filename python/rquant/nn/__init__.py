"""Quantized modules."""

from .attention import MultiheadAttention
from .batch_norm import BatchNorm1d, BatchNorm2d
from .container import Container
from .conv import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d
from .embedding import Embedding
from .embedding_bag import EmbeddingBag
from .experts import Experts
from .linear import Linear
from .norm import LayerNorm
from .packed_weight import PackedWeight, float_weight
from .recurrent import GRU, LSTM, RNN
from .recurrent_cells import GRUCell, LSTMCell, RNNCell
from .registry import register_module
from .sorted_experts import Llama4Experts, ParallelExperts
from .unpacked import Unpacked

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "BatchNorm1d",
    "BatchNorm2d",
    "Container",
    "Conv1d",
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "Embedding",
    "EmbeddingBag",
    "Experts",
    "GRUCell",
    "LSTMCell",
    "LayerNorm",
    "Linear",
    "Llama4Experts",
    "MultiheadAttention",
    "PackedWeight",
    "ParallelExperts",
    "RNNCell",
    "Unpacked",
    "float_weight",
    "register_module",
]
