"""What a layer is to become, in torch.ao's words: QConfigs, and the mappings of modules to them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ...nn import PackedWeight, Unpacked
from ...nn.registry import registration_of
from ...nn.static import StaticInput
from ...observers.methods import Method
from .observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    default_dynamic_quant_observer,
    default_per_channel_weight_observer,
    method_of,
    symmetric,
)


class QConfig(NamedTuple):
    """Factories of what observes a layer's activations and its weight."""

    activation: Callable[[], Any]
    weight: Callable[[], Any]


_WEIGHT = default_per_channel_weight_observer
default_qconfig = default_per_channel_qconfig = QConfig(MinMaxObserver, _WEIGHT)
default_dynamic_qconfig = per_channel_dynamic_qconfig = QConfig(default_dynamic_quant_observer, _WEIGHT)
default_qat_qconfig = QConfig(MovingAverageMinMaxObserver, _WEIGHT)
_BACKENDS = ("x86", "fbgemm", "onednn", "qnnpack")


def get_default_qconfig(backend: str = "x86", version: int = 0) -> QConfig:
    """Activations by histogram and least squared error, weights per channel: the same for every backend, ours is one."""
    _check_backend(backend)
    return QConfig(HistogramObserver, _WEIGHT)


def get_default_qat_qconfig(backend: str = "x86", version: int = 1) -> QConfig:
    """Activations by moving averages, weights per channel."""
    _check_backend(backend)
    return default_qat_qconfig


def _check_backend(backend: str) -> None:
    if backend not in _BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(_BACKENDS)}, got {backend!r}")


class QConfigMapping:
    """Which modules get which QConfig, or None for float: all, by type, by name; the last of these is the strongest.

    Torch's own does as well wherever one is taken.
    """

    def __init__(self) -> None:
        self.global_qconfig: Any = None
        self.object_type_qconfigs: dict[Any, Any] = {}
        self.module_name_regex_qconfigs: dict[str, Any] = {}
        self.module_name_qconfigs: dict[str, Any] = {}

    def set_global(self, global_qconfig: Any) -> "QConfigMapping":
        """For all."""
        self.global_qconfig = global_qconfig
        return self

    def set_object_type(self, object_type: Any, qconfig: Any) -> "QConfigMapping":
        """For modules of this very type; functions, which torch takes too, need none here."""
        self.object_type_qconfigs[object_type] = qconfig
        return self

    def set_module_name_regex(self, module_name_regex: str, qconfig: Any) -> "QConfigMapping":
        """For modules whose name the expression matches from its beginning; the first one that does."""
        self.module_name_regex_qconfigs[module_name_regex] = qconfig
        return self

    def set_module_name(self, module_name: str, qconfig: Any) -> "QConfigMapping":
        """For the module of this name, and all inside it."""
        self.module_name_qconfigs[module_name] = qconfig
        return self


def get_default_qconfig_mapping(backend: str = "x86", version: int = 0) -> QConfigMapping:
    """`get_default_qconfig` for all."""
    return QConfigMapping().set_global(get_default_qconfig(backend, version))


def get_default_qat_qconfig_mapping(backend: str = "x86", version: int = 1) -> QConfigMapping:
    """`get_default_qat_qconfig` for all."""
    return QConfigMapping().set_global(get_default_qat_qconfig(backend, version))


def put_qconfigs(model: nn.Module, mapping: Any) -> None:
    """Give modules the attribute `qconfig` that a QConfigMapping means for them."""
    for name, module in model.named_modules():
        chosen = mapping.global_qconfig if not name else _UNSAID
        chosen = mapping.object_type_qconfigs.get(type(module), chosen)
        matching = (q for r, q in mapping.module_name_regex_qconfigs.items() if re.match(r, name))
        chosen = mapping.module_name_qconfigs.get(name, next(matching, chosen))
        if chosen is not _UNSAID:
            module.qconfig = chosen


_UNSAID = object()


@dataclass(frozen=True)
class Plan:
    """What a QConfig means for one layer: arguments of `rquant.quantize`, and how its input is calibrated, if it is rounded."""

    arguments: dict[str, Any]
    method: Method | None = None
    symmetric: bool = False


def plans_of(model: nn.Module) -> dict[str, Plan]:
    """By name, for each layer that can be static and has a QConfig: its own, or else that of the module it is in."""
    qconfigs: dict[str, Any] = {}
    plans: dict[str, Plan] = {}
    for name, module in model.named_modules(remove_duplicate=False):  # a parent before its children
        outer = qconfigs[name.rpartition(".")[0]] if name else None
        qconfig = qconfigs[name] = getattr(module, "qconfig", outer)
        registration = registration_of(module)
        if qconfig is None or registration is None or not issubclass(registration.quantized, StaticInput):
            continue
        if issubclass(registration.quantized, PackedWeight):
            plans[name] = _plan(qconfig, f"{name or 'model'}.qconfig")
        elif issubclass(registration.quantized, Unpacked):
            plans[name] = Plan({"weights": "int8", "activations": "int8"})
    return plans


def _plan(qconfig: Any, where: str) -> Plan:
    try:
        weight, activation = qconfig.weight(), qconfig.activation
    except (AttributeError, TypeError):
        raise ValueError(f"{where}: expected a QConfig or None, got {qconfig!r}") from None
    if weight.dtype not in (torch.qint8, torch.quint8):
        raise ValueError(f"{where}.weight().dtype: expected torch.qint8 or torch.quint8, got {weight.dtype}")
    affine = weight.dtype == torch.quint8 or not symmetric(weight)
    arguments = {"weights": "int8", "activations": "int8", "symmetric": not affine}
    return Plan(arguments, method_of(activation, f"{where}.activation()"), symmetric(activation()))
