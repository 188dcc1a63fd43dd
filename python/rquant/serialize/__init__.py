"""A quantized model in safetensors files, or as a state dict beside a JSON map; back onto a float skeleton."""

from .files import load, save
from .statedict import quantization_map, requantize

__all__ = ["load", "quantization_map", "requantize", "save"]
