"""`torch.ao.quantization`, the deprecated package, on rquant's kernels: change the import, keep the code."""

from typing import Any

from .dynamic import quantize_dynamic
from .fake_quantize import FakeQuantize
from .fusion import DeQuantStub, QuantStub, QuantWrapper, fuse_modules, fuse_modules_qat
from .observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    default_dynamic_quant_observer,
    default_histogram_observer,
    default_observer,
    default_per_channel_weight_observer,
    default_placeholder_observer,
    default_weight_observer,
)
from .prepare import convert, convert_fx, prepare, prepare_fx, quantize
from .qat import (
    disable_observer,
    enable_observer,
    freeze_bn_stats,
    prepare_qat,
    prepare_qat_fx,
    quantize_qat,
)
from .qconfig import (
    QConfig,
    QConfigMapping,
    default_dynamic_qconfig,
    default_per_channel_qconfig,
    default_qat_qconfig,
    default_qconfig,
    get_default_qat_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig,
    get_default_qconfig_mapping,
    per_channel_dynamic_qconfig,
)
from .tensor import QuantizedTensor, quantize_per_channel, quantize_per_tensor

__all__ = [
    "DeQuantStub",
    "FakeQuantize",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "ObserverBase",
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
    "default_dynamic_quant_observer",
    "default_histogram_observer",
    "default_observer",
    "default_per_channel_qconfig",
    "default_per_channel_weight_observer",
    "default_placeholder_observer",
    "default_qat_qconfig",
    "default_qconfig",
    "default_weight_observer",
    "disable_observer",
    "enable_observer",
    "freeze_bn_stats",
    "fuse_modules",
    "fuse_modules_qat",
    "get_default_qat_qconfig",
    "get_default_qat_qconfig_mapping",
    "get_default_qconfig",
    "get_default_qconfig_mapping",
    "per_channel_dynamic_qconfig",
    "prepare",
    "prepare_fx",
    "prepare_qat",
    "prepare_qat_fx",
    "quantize",
    "quantize_dynamic",
    "quantize_per_channel",
    "quantize_per_tensor",
    "quantize_qat",
]

_ROUNDS = "layers of `prepare_qat` always round; a model that is not prepared does not"
_SEEN = "rquant.Calibration keeps what was seen, and saves it: calibration.save(path), rquant.Statistics.load(path)"
_WEIGHTS_ALONE = "rquant.quantize(model, weights=...) with activations=None, and rquant.freeze(model)"
INSTEAD = {
    "FixedQParamsObserver": "no activation function has a scale of its own: a layer rounds its input by what it was calibrated with",
    "NoopObserver": "a qconfig of None leaves a module float",
    "RecordingObserver": _SEEN,
    "add_quant_dequant": "nothing: layers take floats, and what a model returns is floats",
    "disable_fake_quant": _ROUNDS,
    "enable_fake_quant": _ROUNDS,
    "float16_dynamic_qconfig": "quantize_dynamic(model, dtype=torch.float16)",
    "float_qparams_weight_only_qconfig": "quantize_dynamic(model, {nn.Embedding}, dtype=torch.quint8)",
    "fuse_fx": "rquant.fold_bn(model, sample)",
    "get_observer_state_dict": _SEEN,
    "load_observer_state_dict": _SEEN,
    "default_weight_only_qconfig": _WEIGHTS_ALONE,
    "propagate_qconfig_": "nothing: the attribute qconfig of a module holds for all inside it",
    "swap_module": "rquant.register_module makes types of modules known",
}
"""Names of torch.ao's that are not here, and what there is instead."""


def __getattr__(name: str) -> Any:
    if name in INSTEAD:  # not AttributeError, whose text `from ... import` would throw away
        raise ImportError(f"{name}: not in rquant.compat.torch_ao; instead: {INSTEAD[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
