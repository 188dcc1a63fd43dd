"""`torch.ao.quantization`, the deprecated package, on rquant's kernels: change the import, keep the code."""

from .dynamic import quantize_dynamic
from .fusion import DeQuantStub, QuantStub, QuantWrapper, fuse_modules, fuse_modules_qat
from .tensor import QuantizedTensor, quantize_per_channel, quantize_per_tensor

__all__ = [
    "DeQuantStub",
    "QuantStub",
    "QuantWrapper",
    "QuantizedTensor",
    "fuse_modules",
    "fuse_modules_qat",
    "quantize_dynamic",
    "quantize_per_channel",
    "quantize_per_tensor",
]
