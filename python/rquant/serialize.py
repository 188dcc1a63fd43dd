"""A quantized model in one safetensors file, or as a state dict beside a JSON map; back onto a float skeleton.

Format 1: canonical tensors under their state dict names, each tied one once, non-persistent buffers under theirs; the
header's metadata holds `rquant`, the configuration in JSON, and `rquant_sha256` over it and the table of tensors.
"""

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import _rquant
from .modelmap import Config, Source, describe, frozen_layers, is_persistent, join, named_tensors, rebuild
from .nn import PackedWeight, storage
from .safetensors_file import DTYPES, Entry, Reader, dtype_name, write

FORMAT = 1
LARGEST_IN_MAP = 64 * 1024
PathLike = str | os.PathLike[str]


def save(model: nn.Module, path: PathLike) -> None:
    """Write the frozen model to `path`, a safetensors file, whole or not at all.

    Raises ValueError for a layer that is not frozen, or state other than tensors.
    """
    for name, module in model.named_modules():
        if isinstance(module, PackedWeight) and not module.frozen:
            raise ValueError(
                f"{name or 'model'}: expected a frozen layer; call rquant.freeze(model) before saving"
            )
    config = {"format": FORMAT, "rquant": _rquant.__version__, **describe(model), "buffers": []}
    repeated = {name for names in config["ties"] for name in names[1:]}
    entries = []
    for name, tensor, owner in named_tensors(model):
        if name not in repeated:
            entries.append(Entry(name, tensor.dtype, tuple(tensor.shape), partial(Tensor.detach, tensor)))
        if not is_persistent(name, owner):
            config["buffers"].append(name)
    for name, layer in frozen_layers(model).items():
        if join(name, "weight") not in repeated:
            entries += _packed_entries(name, layer)
    table = {entry.name: (dtype_name(entry.dtype), entry.shape) for entry in entries}
    text = json.dumps(config, sort_keys=True)
    write(Path(path), entries, {"format": "pt", "rquant": text, "rquant_sha256": _digest(text, table)})


def _packed_entries(name: str, layer: PackedWeight) -> list[Entry]:
    # unpacked once to learn the sizes and once for each tensor, so that no more than one weight is ever held
    def part(i: int) -> Tensor:
        return layer.canonical()[i]  # type: ignore[return-value]

    sizes = zip(storage.CANONICAL, layer.canonical()[:3], strict=True)
    return [
        Entry(join(name, key), t.dtype, tuple(t.shape), partial(part, i))
        for i, (key, t) in enumerate(sizes)
        if t is not None
    ]


def _digest(config: str, table: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    rows = sorted((name, dtype, list(shape)) for name, (dtype, shape) in table.items())
    return hashlib.sha256(json.dumps([config, rows]).encode()).hexdigest()


def load(path: PathLike, model: nn.Module) -> nn.Module:
    """Make `model`, the float skeleton (best built under `torch.device("meta")`), the model that was saved; returns it.

    Layers come frozen and packed for this CPU; tensors are read one at a time. Raises ValueError, naming file and tensor,
    for a file that is damaged, of a newer format or not of this model; the skeleton is then not to be used.
    """
    with opened(path) as (config, source):
        rebuild(model, config, source)
    return model


@contextlib.contextmanager
def opened(path: PathLike) -> Iterator[tuple[Config, Source]]:
    """What a file describes, and its tensors as views of it for as long as it is open. Raises ValueError as `load`."""
    path = Path(path)
    reader = Reader(path)
    try:
        config = _config(path, reader)
        shapes = {name: shape for name, (_, shape) in reader.table.items()}
        yield config, Source(shapes, reader.view, f"{path}: ")
    finally:
        reader.close()


def _config(path: Path, reader: Reader) -> Config:
    if "rquant" not in reader.metadata:
        raise ValueError(f"{path}: expected a file written by rquant.save, got one without its metadata")
    try:
        config = json.loads(reader.metadata["rquant"])
        version = config["format"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: the configuration in the header is damaged") from None
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(
            f"{path}: expected format {FORMAT} or older, got format {version} (written by rquant "
            f"{config.get('rquant')}; this is rquant {_rquant.__version__})"
        )
    if _digest(reader.metadata["rquant"], reader.table) != reader.metadata.get("rquant_sha256"):
        raise ValueError(f"{path}: the header is damaged: its checksum does not fit")
    return config  # type: ignore[no-any-return]


def quantization_map(model: nn.Module) -> Config:
    """All that a float skeleton and `model.state_dict()` lack to be the model again, in JSON types.

    Non-persistent buffers are in it. Raises ValueError, naming it, for one larger than 64 KiB: use `save` then.
    """
    buffers = {}
    for name, tensor, owner in named_tensors(model):
        if is_persistent(name, owner):
            continue
        if tensor.nbytes > LARGEST_IN_MAP:
            raise ValueError(
                f"{name}: expected a non-persistent buffer of at most {LARGEST_IN_MAP} bytes, got {tensor.nbytes}; "
                "rquant.save keeps it as a tensor"
            )
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        dtype, shape = dtype_name(tensor.dtype), list(tensor.shape)
        buffers[name] = {"dtype": dtype, "shape": shape, "base64": base64.b64encode(raw).decode()}
    return {"format": FORMAT, "rquant": _rquant.__version__, **describe(model), "buffers": buffers}


def requantize(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    quantization_map: Config,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Make `model`, a float skeleton, the model that `state_dict` and the map were taken from; bit-identical. Returns it.

    Layers whose `weight_packed` is in the state dict come frozen, others trainable. Raises ValueError, naming the tensor,
    for what is missing, left over or of a wrong shape; the skeleton is then not to be used.
    """
    version = quantization_map.get("format")
    if version != FORMAT:
        raise ValueError(f"quantization_map: expected format {FORMAT}, got {version!r}")
    tensors = dict(state_dict)
    for name, entry in quantization_map["buffers"].items():
        tensors[name] = _buffer(name, entry)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    chosen = None if device is None else torch.device(device)
    rebuild(
        model, quantization_map, Source(shapes, lambda name: tensors[name].detach(), "state_dict: ", chosen)
    )
    return model


def _buffer(name: str, entry: dict[str, Any]) -> Tensor:
    try:
        raw = bytearray(base64.b64decode(entry["base64"], validate=True))
        dtype = DTYPES[entry["dtype"]]
        flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        return flat.reshape(entry["shape"])
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"quantization_map: buffer {name!r} is damaged ({error})") from None
