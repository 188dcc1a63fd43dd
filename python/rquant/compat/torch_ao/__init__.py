"""`torch.ao.quantization`, the deprecated package, on rquant's kernels: change the import, keep the code."""

from .dynamic import quantize_dynamic
from .tensor import QuantizedTensor, quantize_per_channel, quantize_per_tensor

__all__ = ["QuantizedTensor", "quantize_dynamic", "quantize_per_channel", "quantize_per_tensor"]
