"""A quantized model in safetensors files; back onto a float skeleton.

Format 1: canonical tensors under their state dict names, each tied one once, non-persistent buffers under theirs; the
metadata (of the file's header, or of the index of several files) holds `rquant`, the configuration in JSON, and
`rquant_sha256` over it and the table of tensors. `checksums` in the configuration says that headers have one for each tensor.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from ..io.checkpoint import parse_size
from ..io.configuration import read_config, signed
from ..io.safetensors_file import Entry, Reader, write
from ..io.safetensors_header import PathLike
from ..io.sharded import split, write_set
from ..nn import PackedWeight, storage
from .completion import completed
from .modelmap import Config, Source, describe, frozen_layers, is_persistent, join, named_tensors, rebuild


def save(model: nn.Module, path: PathLike, max_shard_size: int | str | None = None) -> None:
    """Write the frozen model to `path`, a safetensors file, whole or not at all.

    With `max_shard_size` (bytes, or as in "5GB"), or where `path` is a directory: `model.safetensors` in that directory, or
    shards of at most this size (a layer or tensor that is larger has one of its own) and `model.safetensors.index.json`.
    No more than one layer is unpacked at a time.

    Raises ValueError for a layer that is not frozen, or state other than tensors.
    """
    path = Path(path)
    limit = None if max_shard_size is None else parse_size(max_shard_size, "max_shard_size")
    if limit is not None and path.is_file():
        raise ValueError(f"path: expected a directory, as max_shard_size is given, got the file {path}")
    config, entries = _described(model)
    table = {name: (spec.dtype, spec.shape) for entry in entries for name, spec in entry.tensors.items()}
    metadata = {"format": "pt", **signed(config, table)}
    if limit is None and not path.is_dir():
        write(path, entries, metadata)
    else:
        write_set(path, [entries] if limit is None else split(entries, limit), metadata)


def _described(model: nn.Module) -> tuple[Config, list[Entry]]:
    """The configuration of a frozen model, and what is to be written of it."""
    for name, module in model.named_modules():
        if isinstance(module, PackedWeight) and not module.frozen:
            raise ValueError(
                f"{name or 'model'}: expected a frozen layer; call rquant.freeze(model) before saving"
            )
    config = {**describe(model), "buffers": []}
    repeated = {name for names in config["ties"] for name in names[1:]}
    entries = []
    for name, tensor, owner in named_tensors(model):
        if name not in repeated:
            entries.append(Entry.of({name: tensor}, partial(_alone, tensor)))
        if not is_persistent(name, owner):
            config["buffers"].append(name)
    for name, layer in frozen_layers(model).items():
        config["modules"][name]["shape"] = list(
            layer.weight_shape
        )  # rows are padded: the tensors do not tell
        if join(name, "weight") not in repeated:
            entries.append(_packed_entry(name, layer))
    return config, entries


def _alone(tensor: Tensor) -> list[Tensor]:
    return [tensor]


def _packed_entry(name: str, layer: PackedWeight) -> Entry:
    sizes = {
        join(name, key): like
        for key, like in zip(storage.CANONICAL, layer.canonical_like()[:3], strict=True)
        if like is not None
    }
    return Entry.of(sizes, lambda: [tensor for tensor in layer.canonical()[:3] if tensor is not None])


def load(path: PathLike, model: nn.Module) -> nn.Module:
    """Make `model`, the float skeleton (best built under `torch.device("meta")`), the model that was saved; returns it.

    `path`: a file, or the directory or index of several. Layers come frozen and packed for this CPU; tensors are read one at
    a time. What `rquant quantize` made of a checkpoint knows neither ties nor non-persistent buffers: the skeleton's hold, and
    the latter must not be on meta. Raises ValueError, naming file and tensor, for files that are damaged, of a newer format, not of one save or not
    of this model; the skeleton is then not to be used.
    """
    with opened(path, model) as (config, source):
        rebuild(model, config, source)
    return model


@contextlib.contextmanager
def opened(path: PathLike, model: nn.Module) -> Iterator[tuple[Config, Source]]:
    """What files say of `model`, and their tensors as views for as long as they are open. Raises ValueError as `load`."""
    path = Path(path)
    reader = Reader(path)
    try:
        config = read_config(path, reader.metadata, reader.table)
        shapes = {name: shape for name, (_, shape) in reader.table.items()}
        source = Source(shapes, reader.view, file_of=reader.file_of)
        if config.get("checksums"):
            source.verify = reader.verify
        if config.get("from") == "state_dict":
            config = completed(config, model, source)
        yield config, source
    finally:
        reader.close()
