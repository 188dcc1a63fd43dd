"""`torch.ao.quantization`, the deprecated package, on rquant's kernels: change the import, keep the code."""

from .dynamic import quantize_dynamic
from .fusion import DeQuantStub, QuantStub, QuantWrapper, fuse_modules, fuse_modules_qat
from .observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)
from .prepare import convert, convert_fx, prepare, prepare_fx
from .qat import disable_observer, enable_observer, freeze_bn_stats, prepare_qat, prepare_qat_fx
from .qconfig import (
    QConfig,
    QConfigMapping,
    default_dynamic_qconfig,
    default_qat_qconfig,
    default_qconfig,
    get_default_qat_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig,
    get_default_qconfig_mapping,
)
from .tensor import QuantizedTensor, quantize_per_channel, quantize_per_tensor

__all__ = [
    "DeQuantStub",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "PerChannelMinMaxObserver",
    "PlaceholderObserver",
    "QConfig",
    "QConfigMapping",
    "QuantStub",
    "QuantWrapper",
    "QuantizedTensor",
    "convert",
    "convert_fx",
    "default_dynamic_qconfig",
    "default_qat_qconfig",
    "default_qconfig",
    "disable_observer",
    "enable_observer",
    "freeze_bn_stats",
    "fuse_modules",
    "fuse_modules_qat",
    "get_default_qat_qconfig",
    "get_default_qat_qconfig_mapping",
    "get_default_qconfig",
    "get_default_qconfig_mapping",
    "prepare",
    "prepare_fx",
    "prepare_qat",
    "prepare_qat_fx",
    "quantize_dynamic",
    "quantize_per_channel",
    "quantize_per_tensor",
]
