"""How good a quantized model still is: perplexity, agreement with the float model, each layer's error; and how fast.

These take any torch model and batches; transformers is needed for model folders only.
"""

from .language_model import LanguageQuality, compare, perplexity, windows
from .layers import LayerError, Sensitivity, sensitivity
from .outcome import Column, Outcome
from .outputs import Agreement, Cosine, agreement, cosine, mean_pooled
from .page import html_report
from .pretrained import Pretrained, load_pretrained
from .recipe import Recipe, resident_bytes
from .speed import Speed, speeds
from .suites import bench, encoder, language
from .text import Text, builtin_text, read_text

__all__ = [
    "Agreement",
    "Column",
    "Cosine",
    "LanguageQuality",
    "LayerError",
    "Outcome",
    "Pretrained",
    "Recipe",
    "Sensitivity",
    "Speed",
    "Text",
    "agreement",
    "bench",
    "builtin_text",
    "compare",
    "cosine",
    "encoder",
    "html_report",
    "language",
    "load_pretrained",
    "mean_pooled",
    "perplexity",
    "read_text",
    "resident_bytes",
    "sensitivity",
    "speeds",
    "windows",
]
