"""`torch.ao.quantization.quantize_dynamic`, the deprecated call, on rquant's kernels."""

import copy
import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from ...model import freeze, quantize
from ...nn.registry import registration_of, why_not

_LAYERS = {nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.RNNCell, nn.GRUCell}
# what torch's dtype is here, and the types that torch quantizes so
_SCHEMES: dict[torch.dtype, tuple[dict[str, Any], set[type[nn.Module]]]] = {
    torch.qint8: ({"weights": "int8", "activations": "int8"}, _LAYERS),
    torch.float16: ({"weights": "float16"}, _LAYERS),
    torch.quint8: ({"weights": "int8", "symmetric": False}, {nn.Embedding, nn.EmbeddingBag}),
    torch.quint4x2: ({"weights": "int4", "group_size": -1}, {nn.EmbeddingBag}),
}
Key = type[nn.Module] | str


def quantize_dynamic(
    model: nn.Module,
    qconfig_spec: Collection[Key] | Mapping[Key, Any] | None = None,
    dtype: torch.dtype = torch.qint8,
    mapping: None = None,
    inplace: bool = False,
) -> nn.Module:
    """A copy of the model, or the model itself, with its layers frozen to integers and in eval mode.

    `torch.qint8`: int8 weights per output channel, inputs as int8 per token, exact int32 products; by default Linear,
    LSTM, GRU and the cells. `torch.float16`: their weights cast. `torch.quint8`: Embedding and EmbeddingBag in affine
    int8 rows; `torch.quint4x2`: EmbeddingBag in int4.

    `qconfig_spec` is a set of types and module names, or a dict from these to QConfigs, of which the weight's dtype
    counts, or None for float; a module's name is stronger than its type, an attribute `qconfig` stronger than both, and
    what is inside a module follows it unless it says otherwise. Types are exact, as torch's are; a type of which rquant has a
    quantized form may be named even if torch has none. Warns for modules of a named type that stay float.

    A weight that an embedding shares stays shared. Raises ValueError for a name that is none of the model's, a dtype other
    than these, and a `mapping`: `rquant.register_module` makes types known.
    """
    if mapping is not None:
        raise ValueError(f"mapping: expected None (see rquant.register_module), got {mapping!r}")
    _entry(dtype, "dtype")
    spec = _spec(qconfig_spec, dtype)
    model = model if inplace else copy.deepcopy(model)
    model.eval()
    chosen = _choose(model, spec, warn=qconfig_spec is not None)
    if chosen:
        rules = [(_any_of(names), _SCHEMES[kind][0]) for kind, names in chosen.items()]
        every = _any_of([name for names in chosen.values() for name in names])
        quantize(model, include=every, rules=rules)  # type: ignore[arg-type]
        freeze(model)
    return model


def _entry(dtype: Any, argument: str) -> tuple[dict[str, Any], set[type[nn.Module]]]:
    if dtype not in _SCHEMES:
        names = ", ".join(map(str, _SCHEMES))
        raise ValueError(f"{argument}: expected one of {names}, got {dtype!r}")
    return _SCHEMES[dtype]


def _spec(given: Any, dtype: torch.dtype) -> dict[Key, torch.dtype | None]:
    """Type or name -> the dtype that stands for a scheme; None leaves float."""
    if given is None:
        return dict.fromkeys(_SCHEMES[dtype][1], dtype)
    if isinstance(given, str | type) or not isinstance(given, Collection):
        raise ValueError(f"qconfig_spec: expected a set of types and names, or a dict, got {given!r}")
    for key in given:
        if not (isinstance(key, str) or (isinstance(key, type) and issubclass(key, nn.Module))):
            raise ValueError(f"qconfig_spec: expected module types and names, got {key!r}")
    if not isinstance(given, Mapping):
        return dict.fromkeys(given, dtype)
    return {key: _dtype_of(qconfig, f"qconfig_spec[{key!r}]") for key, qconfig in given.items()}


def _dtype_of(qconfig: Any, where: str) -> torch.dtype | None:
    if qconfig is None:
        return None
    try:
        dtype = qconfig.weight().dtype
    except (AttributeError, TypeError):
        raise ValueError(f"{where}: expected a QConfig or None, got {qconfig!r}") from None
    _entry(dtype, f"{where}.weight().dtype")
    return dtype  # type: ignore[no-any-return]


def _choose(
    model: nn.Module, spec: dict[Key, torch.dtype | None], warn: bool
) -> dict[torch.dtype, list[str]]:
    """Names of the modules to quantize, by dtype, as torch hands QConfigs down the tree."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for key in spec:
        if isinstance(key, str) and key not in modules:
            raise ValueError(f"qconfig_spec: expected a module's name, {key!r} is none of this model's")
    found: dict[str, torch.dtype | None] = {}
    chosen: dict[torch.dtype, list[str]] = {}
    refused = []
    for name, module in modules.items():  # a parent before its children
        outer = found[name.rpartition(".")[0]] if name else None
        dtype = spec.get(name, spec.get(type(module), outer))
        if hasattr(module, "qconfig"):
            dtype = _dtype_of(module.qconfig, f"{name or 'model'}.qconfig")
        found[name] = dtype
        named = name in spec or type(module) in spec
        if dtype is None or not (named or type(module) in _SCHEMES[dtype][1]):
            continue
        if registration_of(module) is not None:
            chosen.setdefault(dtype, []).append(name)
        elif type(module) in spec and module._parameters:
            refused.append(f"{name or 'model'} ({type(module).__name__}: {why_not(module)})")
    if refused and warn:
        warnings.warn(f"quantize_dynamic: left float: {', '.join(refused)}", stacklevel=3)
    return chosen


def _any_of(names: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, names)))
