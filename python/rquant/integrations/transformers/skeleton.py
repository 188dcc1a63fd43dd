"""What is done to a model on the meta device before its tensors are read."""

import re
from typing import Any

import torch
from torch import nn

from ...model import quantize
from ...nn import PackedWeight
from ...nn.linear import is_conv1d
from ...report import Report
from ...serialize.modelmap import Source, describe, join, replace_modules
from .config import RQuantConfig
from .containers import Pending, put_back
from .layers import shield


def packed_layers(model: nn.Module) -> dict[str, PackedWeight]:
    """Every quantized layer, frozen or not, at its first name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, PackedWeight)}


def conv1d_names(model: nn.Module) -> set[str]:
    """Names of Hugging Face's Conv1D layers, whose checkpoints hold weights transposed."""
    return {name for name, module in model.named_modules() if is_conv1d(module)}


def keeps_float32(model: nn.Module, name: str, dtype: torch.dtype) -> bool:
    """Whether transformers loads this parameter in float32 although the model is of `dtype` (T5's `wo` in float16)."""
    parts: list[str] = []
    if dtype == torch.float16:
        parts += model._keep_in_fp32_modules or []  # type: ignore[operator, arg-type]
    if dtype in (torch.float16, torch.bfloat16):
        parts += model._keep_in_fp32_modules_strict or []  # type: ignore[operator, arg-type]
    return any(re.search(rf"(^|\.){part}($|\.)", name) for part in parts)


def quantize_skeleton(model: nn.Module, config: RQuantConfig) -> tuple[Report, dict[str, Pending]]:
    """Replace the chosen modules of a float model on meta by layers that are trainable until their weight has come.

    Modules that would be taken apart stay whole so long.
    """
    for target, source in getattr(model, "all_tied_weights_keys", {}).items():
        parent, _, key = target.rpartition(".")
        setattr(model.get_submodule(parent), key, model.get_parameter(source))
    left_out = [name for name, _ in model.named_modules() if name and _is_left_out(name, config)]
    exclude = [*(config.exclude or ()), *left_out]
    before = dict(model.named_modules())
    report = quantize(model, **config.quantize_arguments(), include=config.include, exclude=exclude or None)
    return report, put_back(model, before)


def _is_left_out(name: str, config: RQuantConfig) -> bool:
    names = config.modules_to_not_convert or ()
    return any(name == key or name.endswith(f".{key}") or f".{name}.".find(f".{key}.") >= 0 for key in names)


def describe_layers(model: nn.Module) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """`layers` and `ties` of the configuration: entries of one kind with all their names, and packed weights shared."""
    config = describe(model)
    kinds: dict[str, dict[str, Any]] = {}
    for name, entry in config["modules"].items():
        entry = {key: value for key, value in entry.items() if key != "dtype"}  # the model's, told on loading
        kinds.setdefault(repr(entry), {**entry, "names": []})["names"].append(name)
    packed = {join(name, "weight") for name in config["modules"]}
    return list(kinds.values()), [names for names in config["ties"] if packed.issuperset(names)]


def rebuild_skeleton(model: nn.Module, config: RQuantConfig, dtype: torch.dtype) -> None:
    """Replace the modules that a saved configuration lists; what it lists and the model lacks (a head) is passed over.

    The layers hold packed tensors on meta, shielded; of tied ones only the first does. Raises ValueError if the
    configuration lists none, or a module is not of the listed kind.
    """
    if config.layers is None:
        raise ValueError("quantization_config: expected `layers`, as save_pretrained writes them, got none")
    listed = [(name, entry) for entry in config.layers for name in entry["names"]]
    whole = [(name, {**entry, "names": None}) for name, entry in listed if "weights" not in entry]
    _replace(model, {name: entry for key, entry in whole if (name := _found(model, key))})
    modules, found = {}, {}
    for key, entry in listed:
        name = _found(model, key)
        if name and "weights" in entry:
            wide = keeps_float32(model, name, dtype)
            own = torch.float32 if wide else model.get_parameter(join(name, "weight")).dtype
            modules[name] = {**entry, "dtype": str(own).removeprefix("torch.")}
            found[key] = name
    ties = [
        [join(found[n], "weight") for t in names if (n := t[: -len(".weight")]) in found]
        for names in config.ties or ()
    ]
    _replace(model, modules)
    repeated = {name[: -len(".weight")] for names in ties for name in names[1:]}
    for name, layer in packed_layers(model).items():
        layer.hold(
            {} if name in repeated else layer.held, like=torch.empty(0, dtype=layer.compute_like.dtype)
        )
        shield(layer)
        layer._is_hf_initialized = True  # type: ignore[assignment]  # what is missing is an error, bias too


def _replace(model: nn.Module, modules: dict[str, Any]) -> None:
    packed: dict[str, tuple[int, ...]] = {join(name, "weight_packed"): () for name in modules}
    replace_modules(
        model, {"modules": modules}, {}, Source(packed, model.get_buffer, "quantization_config: ")
    )


def _found(model: nn.Module, name: str) -> str | None:
    """The listed name in this model, which may be the inner model of the one that was saved, or have it inside."""
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        try:
            model.get_submodule(candidate)
        except AttributeError:
            continue
        return candidate
    return None
