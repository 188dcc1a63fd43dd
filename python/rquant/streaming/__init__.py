"""A checkpoint quantized from files to files, one tensor in memory at a time; neither torch nor the model is needed."""

from .choice import Wish
from .convert import Summary, quantize_checkpoint

__all__ = ["Summary", "Wish", "quantize_checkpoint"]
