"""Packed int8, int4 and int2 weights for torch and numpy, with exact integer kernels.

Importing needs numpy and safetensors only; names that need torch are imported when first used.
"""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from . import numerics, numpy
from ._import_hook import after_import
from ._rquant import __version__
from ._threads import get_num_threads, set_num_threads
from .info import backend_info
from .qtypes import QType, qfloat8, qfloat8_e4m3fn, qfloat8_e5m2, qint2, qint4, qint8
from .scheme import estimate_size

if TYPE_CHECKING:
    from . import evaluate, nn, observers, optimize, qat, viz
    from .calibration import Calibration, Statistics, calibrate
    from .fuse import fold_bn
    from .integrations.transformers import RQuantConfig
    from .model import freeze, quantize
    from .nn import (
        Conv1d,
        Conv2d,
        ConvTranspose1d,
        ConvTranspose2d,
        Embedding,
        LayerNorm,
        Linear,
        register_module,
    )
    from .outliers import record_outliers
    from .recommendation import recommend
    from .report import Report
    from .serialize import load, quantization_map, requantize, save
    from .simulate import simulate_
    from .tensor import QTensor, absmax_quantize, quantize_tensor, zeropoint_quantize

_WITH_TORCH = {
    "Calibration": "calibration",
    "Conv1d": "nn",
    "Conv2d": "nn",
    "ConvTranspose1d": "nn",
    "ConvTranspose2d": "nn",
    "Embedding": "nn",
    "LayerNorm": "nn",
    "Linear": "nn",
    "QTensor": "tensor",
    "RQuantConfig": "integrations.transformers",
    "Report": "report",
    "Statistics": "calibration",
    "absmax_quantize": "tensor",
    "calibrate": "calibration",
    "distributed": "distributed",
    "evaluate": "evaluate",
    "fold_bn": "fuse",
    "freeze": "model",
    "load": "serialize",
    "nn": "nn",
    "observers": "observers",
    "optimize": "optimize",
    "qat": "qat",
    "quantization_map": "serialize",
    "quantize": "model",
    "quantize_tensor": "tensor",
    "recommend": "recommendation",
    "record_outliers": "outliers",
    "register_module": "nn",
    "requantize": "serialize",
    "save": "serialize",
    "simulate_": "simulate",
    "viz": "viz",
    "zeropoint_quantize": "tensor",
}

__all__ = [
    "Calibration",
    "Conv1d",
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "Embedding",
    "LayerNorm",
    "Linear",
    "QTensor",
    "QType",
    "RQuantConfig",
    "Report",
    "Statistics",
    "__version__",
    "absmax_quantize",
    "backend_info",
    "calibrate",
    "distributed",
    "estimate_size",
    "evaluate",
    "fold_bn",
    "freeze",
    "get_num_threads",
    "load",
    "nn",
    "numerics",
    "numpy",
    "observers",
    "optimize",
    "qat",
    "qfloat8",
    "qfloat8_e4m3fn",
    "qfloat8_e5m2",
    "qint2",
    "qint4",
    "qint8",
    "quantization_map",
    "quantize",
    "quantize_tensor",
    "recommend",
    "record_outliers",
    "register_module",
    "requantize",
    "save",
    "set_num_threads",
    "simulate_",
    "viz",
    "zeropoint_quantize",
]


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'rquant' has no attribute {name!r}")
    try:
        import torch  # noqa: F401
    except ImportError:
        raise ImportError(f"rquant.{name} needs torch: pip install 'rquant[torch]'") from None
    module = importlib.import_module(f".{_WITH_TORCH[name]}", __name__)
    value = module if name == _WITH_TORCH[name] else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_with_transformers() -> None:
    auto = sys.modules["transformers.quantizers.auto"]
    if hasattr(auto, "register_quantizer") and importlib.util.find_spec("torch"):  # else it can be of no use
        importlib.import_module(".integrations.transformers", __name__)


# Models saved with `quant_method: rquant` load in programs that name nothing else of rquant, in either order of imports.
after_import("transformers.quantizers.auto", _register_with_transformers)
