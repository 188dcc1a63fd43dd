"""A configuration that was made from a state dict, without its model, completed by what the skeleton knows."""

import torch
from torch import nn

from ..nn import PackedWeight
from ..nn.linear import is_conv1d
from ..nn.registry import registration_of, why_not
from .modelmap import Config, Source, describe, is_persistent, join, named_tensors


def completed(config: Config, model: nn.Module, source: Source) -> Config:
    """The configuration with the skeleton's ties, kinds of layers and, under `own`, non-persistent buffers.

    Raises ValueError, naming the tensor, for a buffer on the meta device that the source lacks, for a weight that was not
    transposed as its module needs, and for tied weights that the source holds apart, one packed and one not.
    """
    modules = dict(config["modules"])
    ties = []
    for names in describe(model)["ties"]:
        packed = [name for name in names if f"{name}_packed" in source.shapes]
        floats = [name for name in names if name in source.shapes]
        if packed and floats:
            raise source.error(
                f"{packed[0]}: is tied to {floats[0]} in the model, but the file has one packed and one not",
                floats[0],
            )
        stored = next(iter(packed or floats), names[0])
        ties.append([stored, *(name for name in names if name != stored)])
        for name in names if packed else ():  # what shares a packed weight is packed too
            modules.setdefault(name.removesuffix(".weight"), modules[stored.removesuffix(".weight")])
    found = dict(model.named_modules(remove_duplicate=False))
    for name, entry in modules.items():
        module, weight = found.get(name), join(name, "weight_packed")
        if module is None:
            continue  # `rebuild` says so
        registration = registration_of(module)
        if registration is None or not issubclass(registration.quantized, PackedWeight):
            raise source.error(
                f"module {name!r}: expected one that can be packed, got {why_not(module)}", weight
            )
        if is_conv1d(module) != entry["transposed"]:
            raise source.error(
                f"{name}: expected a weight that was{'' if is_conv1d(module) else ' not'} transposed for "
                f"{type(module).__name__}; see rquant quantize --transposed",
                weight,
            )
        options = {option: entry.get(option) for option in registration.quantized.OPTIONS}
        modules[name] = {**entry, "activations": None, **options, "class": registration.quantized.__name__}
    own = []
    for name, tensor, owner in named_tensors(model):
        if name in source.shapes or is_persistent(name, owner):
            continue
        own.append(name)
        if tensor.device == torch.device("meta"):
            raise source.error(
                f"{name}: expected this non-persistent buffer's values in the model, as the file has none, got one on "
                "meta; build the model under torch.device('cpu'), or give the buffer its values"
            )
    return {**config, "modules": modules, "ties": ties, "own": own}
