"""optimum-quanto's calls on rquant: `from rquant.compat.quanto import *` in place of `from optimum.quanto import *`.

Quantize, calibrate, train, freeze, save and requantize run as written for quanto. What differs:

- A name in `include` or `exclude` that matches nothing is an error; so is `requantize` with a tensor missing.
- int4 and int2 have groups of 64 and 32 along the input, whatever its size.
- Activations get a scale for each token when they arrive, until `Calibration` gives each layer's input one that stays.
- `QLinear`, `QConv2d` and `QLayerNorm` are `rquant.Linear`, `rquant.Conv2d` and `rquant.LayerNorm`; `quantize_module(linear, ...)`
  is what `QLinear.from_module` was.
- A model returns plain float tensors, or, where gradients are on, ones with a `dequantize()` that they pass. A compiled
  model's are plain: leave `.dequantize()` out there.
- State dicts and quantization maps are rquant's own; quanto's files are not read.

A name of quanto's that has no meaning here says, when imported, what to use instead.
"""

from typing import Any

from ...model import freeze
from ...nn import Conv2d as QConv2d
from ...nn import LayerNorm as QLayerNorm
from ...nn import Linear as QLinear
from ...nn import PackedWeight as QModuleMixin
from ...qtypes import QType as qtype
from ...qtypes import qfloat8, qfloat8_e4m3fn, qfloat8_e5m2, qint2, qint4, qint8
from ...serialize import quantization_map
from ...tensor import QTensor
from .calibrate import Calibration, absmax_scale
from .model import quantize, quantize_module, requantize
from .optimizers import AbsmaxOptimizer, HqqOptimizer, MaxOptimizer
from .pretrained import QuantizedModelForCausalLM, QuantizedTransformersModel

__all__ = [
    "AbsmaxOptimizer",
    "Calibration",
    "HqqOptimizer",
    "MaxOptimizer",
    "QConv2d",
    "QLayerNorm",
    "QLinear",
    "QModuleMixin",
    "QTensor",
    "QuantizedModelForCausalLM",
    "QuantizedTransformersModel",
    "absmax_scale",
    "freeze",
    "qfloat8",
    "qfloat8_e4m3fn",
    "qfloat8_e5m2",
    "qint2",
    "qint4",
    "qint8",
    "qtype",
    "quantization_map",
    "quantize",
    "quantize_module",
    "requantize",
]

_TENSOR = "a layer's state is plain tensors; layer.weight.dequantize() gives the float weight"
_OPTIMIZER = "an optimizer is what rquant.quantize takes as `optimizer`"
_MODEL = "quantize, freeze and rquant.save(model, path); rquant.load(path, model_on_meta) reads it"
INSTEAD = {
    "ActivationQBytesTensor": "between calibrated layers an rquant.flow.Activation passes for a tensor; elsewhere they are plain ones",
    "AffineOptimizer": _OPTIMIZER,
    "Optimizer": _OPTIMIZER,
    "QBitsTensor": _TENSOR,
    "QBytesTensor": _TENSOR,
    "QuantizedDiffusersModel": _MODEL,
    "QuantizedPixArtTransformer2DModel": _MODEL,
    "SymmetricOptimizer": _OPTIMIZER,
    "WeightQBitsTensor": _TENSOR,
    "WeightQBytesTensor": _TENSOR,
    "axis_to_dim": "rquant.quantize_tensor(x, qtype, axis=...) takes any axis",
    "dtype_info": "torch.finfo(dtype) or torch.iinfo(dtype)",
    "get_extension": "rquant.backend_info() tells which kernels run; nothing is compiled at run time",
    "group": "rquant.quantize_tensor(x, qtype, group_size=...)",
    "grouped_shape": "rquant.quantize_tensor(x, qtype, group_size=...).scale.shape",
    "is_extension_available": "rquant.backend_info() tells which kernels run; nothing is compiled at run time",
    "qfallback": "no tensor of rquant's needs it: outputs are plain float tensors",
    "qfloat8_e4m3fnuz": "qfloat8_e4m3fn",
    "quantize_activation": "rquant.quantize_tensor(x, qint8, axis=None, range=(-127 * scale, 127 * scale))",
    "quantize_weight": "rquant.quantize_tensor(x, qtype, axis=..., group_size=...), which chooses the scale",
    "register_qmodule": "rquant.register_module",
    "ungroup": "rquant.quantize_tensor(x, qtype, group_size=...).dequantize()",
}
"""Names of quanto's that are not here, and what there is instead."""


def __getattr__(name: str) -> Any:
    if name in INSTEAD:  # not AttributeError, whose text `from ... import` would throw away
        raise ImportError(f"{name}: not in rquant.compat.quanto; instead: {INSTEAD[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
