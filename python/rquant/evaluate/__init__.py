"""How good a quantized model still is: perplexity, agreement with the float model, and each layer's error.

These take any torch model and batches; transformers is needed for model folders only.
"""

from .agreement import Agreement, Cosine, agreement, cosine, mean_pooled
from .language import LanguageQuality, compare, perplexity, windows
from .sensitivity import LayerError, Sensitivity, sensitivity

__all__ = [
    "Agreement",
    "Cosine",
    "LanguageQuality",
    "LayerError",
    "Sensitivity",
    "agreement",
    "compare",
    "cosine",
    "mean_pooled",
    "perplexity",
    "sensitivity",
    "windows",
]
