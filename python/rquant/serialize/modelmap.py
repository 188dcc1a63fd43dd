"""A quantized model as a description in JSON types, and the model rebuilt from it and its tensors.

`describe` tells what the float skeleton lacks: which modules are quantized and how, and which names are one tensor.
`rebuild` makes that model of a skeleton, which may be on the meta device.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .._native import NotFinite, ranges
from ..nn import Container, PackedWeight, Unpacked, storage
from ..nn.placing import place, take_hooks
from ..nn.registry import class_named, is_registered, registration_of
from ..scheme import Scheme

Config = dict[str, Any]


def join(prefix: str, name: str) -> str:
    """`prefix.name`; the root's prefix is empty."""
    return f"{prefix}.{name}" if prefix else name


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, nn.Module]]:
    """(name, tensor, owner) of every parameter and buffer at each of its names; not what a frozen layer holds."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        own = PackedWeight.OWN if isinstance(module, PackedWeight) else ()
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and name not in own:
                yield join(prefix, name), tensor, module


def is_persistent(name: str, owner: nn.Module) -> bool:
    """Whether `owner`'s state dict has the tensor of this full name."""
    return name.rpartition(".")[2] not in owner._non_persistent_buffers_set


def frozen_layers(model: nn.Module) -> dict[str, PackedWeight]:
    """Frozen layers at each of their names."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: m for name, m in modules if isinstance(m, PackedWeight) and m.frozen}


def describe(model: nn.Module) -> Config:
    """`modules` (name -> class; unless a container also options, of one weight scheme and dtype), `ties` (names of one tensor,
    the stored one first) and, if there are any, `identities` (modules that do nothing: a folded BatchNorm was there, perhaps)."""
    modules: Config = {}
    same: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ValueError(f"{name}: expected a state of tensors, got a module with get_extra_state")
        if isinstance(module, PackedWeight | Container | Unpacked) and not is_registered(type(module)):
            raise ValueError(
                f"{name or 'model'}: expected a class known to rquant.register_module, got {type(module).__name__}"
            )
        if isinstance(module, Container):
            modules[name] = {"class": type(module).__name__}
        elif isinstance(module, Unpacked):
            modules[name] = {"class": type(module).__name__, **module.options()}
        elif isinstance(module, PackedWeight):
            modules[name] = {
                "class": type(module).__name__,
                **module.scheme.to_dict(),
                "activations": None,
                **module.options(),
                "dtype": str(module.compute_like.dtype).removeprefix("torch."),
            }
    for name, layer in frozen_layers(model).items():
        same.setdefault(id(next(iter(layer.held.values()))), []).append(join(name, "weight"))
    for name, tensor, _ in named_tensors(model):
        same.setdefault(id(tensor), []).append(name)
    described: Config = {"modules": modules, "ties": [names for names in same.values() if len(names) > 1]}
    everything = model.named_modules(remove_duplicate=False)
    if identities := [name for name, module in everything if type(module) is nn.Identity]:
        described["identities"] = identities
    return described


@dataclass
class Source:
    """Where tensors come from: their shapes by name, `get` a view of one, and what is said of each.

    `label` begins errors; with `file_of`, those about a tensor begin with what it says. `verify(name)` raises ValueError
    for a tensor that is not what was written; it comes after the checks of values, which can say more.
    """

    shapes: dict[str, tuple[int, ...]]
    get: Callable[[str], Tensor]
    label: str = ""
    device: torch.device | None = None
    file_of: Callable[[str], object] | None = None
    verify: Callable[[str], None] = lambda name: None

    def error(self, message: object, tensor: str = "") -> ValueError:
        """One line that says where and what."""
        label = self.label if self.file_of is None else f"{self.file_of(tensor)}: "
        return ValueError(f"{label}{message}")

    def copy(self, name: str, finite: bool) -> Tensor:
        """The tensor in memory of its own, on `device`. With `finite`, ValueError for NaN or infinity."""
        copied = self.get(name).clone(memory_format=torch.contiguous_format)
        if finite and copied.dtype in (torch.float32, torch.float16, torch.bfloat16) and copied.numel():
            try:
                ranges(copied.cpu().reshape(1, -1), -1)
            except NotFinite as bad:
                raise self.error(bad.named(name, copied.shape), name) from None
        self.verify(name)
        return copied if self.device is None else copied.to(self.device)


def rebuild(model: nn.Module, config: Config, source: Source) -> None:
    """Give `model` the modules and tensors of the described one; every tensor must be there and none be left over.

    Tensors that the configuration's `own` names stay the model's.

    Raises ValueError that names the first tensor or module that does not fit; the model is then half changed.
    """
    first = {name: names[0] for names in config["ties"] for name in names}
    _fold(model, config.get("identities", ()), source)
    replace_modules(model, config, first, source)
    slots = [slot for slot in named_tensors(model) if slot[0] not in config.get("own", ())]
    layers = frozen_layers(model)
    stored_in = {
        name: first.get(join(name, "weight"), join(name, "weight"))[: -len(".weight")] for name in layers
    }
    wanted = {first.get(name, name) for name, _, _ in slots}
    wanted |= {join(stored_in[name], part) for name, layer in layers.items() for part in layer.stored_names()}
    _check_names(
        wanted, {*first, *(join(name, part) for name in layers for part in storage.CANONICAL)}, source
    )
    made: dict[str, Tensor] = {}
    for name, tensor, owner in slots:
        stored, key = first.get(name, name), name.rpartition(".")[2]
        if source.shapes[stored] != tensor.shape:
            raise source.error(
                f"{stored}: expected shape {tuple(tensor.shape)}, got {source.shapes[stored]}", stored
            )
        parameter = isinstance(tensor, nn.Parameter)
        if stored not in made:  # masks, which are buffers, may hold infinities
            made[stored] = source.copy(stored, finite=parameter or isinstance(owner, PackedWeight))
            if parameter:
                made[stored] = nn.Parameter(made[stored], tensor.requires_grad)
        (owner._parameters if parameter else owner._buffers)[key] = made[stored]  # type: ignore[index, assignment]
    held: dict[str, tuple[storage.Held, Tensor]] = {}
    for name, layer in layers.items():
        origin = stored_in[name]
        if origin not in held:
            held[origin] = read_packed(origin, layer, source)
        layer.hold(*held[origin])


def _fold(model: nn.Module, identities: Iterable[str], source: Source) -> None:
    """Where the described model's BatchNorms were folded, take the skeleton's out and give their layers a bias."""
    found = dict(model.named_modules(remove_duplicate=False))
    folded = [name for name in identities if isinstance(found.get(name), _BatchNorm)]
    for name in folded:
        place(model, name, nn.Identity())
    for name, shape in source.shapes.items() if folded else ():
        layer = found.get(name.removesuffix(".bias")) if name.endswith(".bias") else None
        if isinstance(layer, nn.Linear | _ConvNd) and layer._parameters.get("bias", layer) is None:
            like: Tensor = layer._parameters["weight"]  # type: ignore[assignment]
            layer._parameters["bias"] = nn.Parameter(like.new_empty(shape, device="meta"), like.requires_grad)


def read_packed(name: str, layer: PackedWeight, source: Source) -> tuple[storage.Held, Tensor]:
    """What `layer` is to hold, from its canonical tensors in `source`, and what it computes like."""
    parts = {part: source.get(join(name, part)) for part in layer.stored_names()}
    # codes are packed from where they lie; in a mapped file the rest might lie at an odd address
    parts = {part: t if part == "weight_packed" else t.clone() for part, t in parts.items()}
    try:
        q = storage.checked(parts, join(name, ""), layer.weight_shape, layer.scheme)
    except ValueError as error:
        raise source.error(error, join(name, "weight_packed")) from None
    for part in parts:
        source.verify(join(name, part))
    device = source.device or q.codes.device
    return storage.hold(q, device, layer.panel_groups), layer.compute_like.new_empty(0, device=device)


def replace_modules(model: nn.Module, config: Config, first: dict[str, str], source: Source) -> None:
    made: dict[
        int, tuple[nn.Module, nn.Module]
    ] = {}  # what was there and what is now; held, so that ids stay theirs
    frozen = any(name.endswith("weight_packed") for name in source.shapes)
    for name in sorted(config["modules"]):  # a container before its parts
        entry = config["modules"][name]
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise source.error(
                f"module {name!r}: expected in the model, which has none of that name"
            ) from None
        packed = first.get(join(name, "weight"), join(name, "weight")) + "_packed" in source.shapes
        if id(module) not in made:
            try:
                new = _module(module, entry, packed)
            except (TypeError, ValueError) as error:
                raise source.error(f"module {name!r}: {error}") from None
            if isinstance(new, Unpacked):
                new.frozen = frozen
            made[id(module)] = made[id(new)] = module, new
        place(model, name, made[id(module)][1])


def _module(module: nn.Module, entry: Config, packed: bool) -> nn.Module:
    """What is described in place of `module`: a container, or a layer whose weight is on meta."""
    cls = class_named(entry["class"])
    if cls is None:
        raise ValueError(
            f"expected a known class, got {entry['class']!r}; one of your own is made known by rquant.register_module"
        )
    if issubclass(cls, PackedWeight):
        return _layer(cls, module, entry, packed)
    if type(module) is cls and issubclass(cls, Container):
        return module
    registration = registration_of(module)
    if type(module) is not cls and (registration is None or registration.quantized is not cls):
        raise TypeError(f"expected a module that {cls.__name__} is made of, got {type(module).__name__}")
    made: nn.Module
    if issubclass(cls, Unpacked):
        made = cls.wrap(module, **{name: entry[name] for name in cls.OPTIONS if name in entry})
    else:
        made = cls.split(module)
    take_hooks(made, module)
    return made


def _layer(cls: type[PackedWeight], module: nn.Module, entry: Config, packed: bool) -> PackedWeight:
    dtype = getattr(torch, entry["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"expected a known dtype, got {entry['dtype']!r}")
    scheme = Scheme.from_dict(entry)
    options = {name: entry[name] for name in cls.OPTIONS if name in entry}
    layer = cls.wrap(module, scheme, **options)
    meta = torch.empty(layer.float_shape, dtype=dtype, device="meta")
    layer._parameters["weight"] = nn.Parameter(meta)
    if packed:
        layer.hold(storage.hold(storage.empty(layer.weight_shape, scheme), meta.device), like=meta)
    take_hooks(layer, module)
    return layer


def _check_names(wanted: set[str], known: set[str], source: Source) -> None:
    """`known`: further names that a tied tensor may be given under."""
    missing = sorted(wanted - source.shapes.keys())
    extra = sorted(source.shapes.keys() - wanted - known)
    if missing:
        raise source.error(
            f"{missing[0]}: missing" + (f", and {len(missing) - 1} more" if missing[1:] else "")
        )
    if extra:
        raise source.error(f"{extra[0]}: unexpected" + (f", and {len(extra) - 1} more" if extra[1:] else ""))
