"""A checkpoint: one safetensors file, or a directory as Hugging Face lays it out; torch is not needed.

A directory holds `model.safetensors`, or `model-00001-of-0000N.safetensors` and so on with `model.safetensors.index.json`,
whose `weight_map` says which tensor is in which file. An index of ours carries, in its metadata's `rquant_files`, the
SHA-256 of each file's header, which in turn has one of each tensor's bytes: files of different saves are never taken for
one checkpoint.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .safetensors_header import Header, PathLike, Spec, read

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FILES = "rquant_files"
_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


@dataclass(frozen=True)
class Checkpoint:
    """Headers by file, the file of each tensor, the metadata (a file's own, or the index's), and the index if there is one."""

    path: Path
    headers: dict[Path, Header]
    files: dict[str, Path]
    metadata: dict[str, Any]
    index: Path | None = None

    @cached_property
    def tensors(self) -> dict[str, Spec]:
        """All of them, in the order of the files."""
        return {name: spec for header in self.headers.values() for name, spec in header.tensors.items()}


def shard_name(number: int, count: int) -> str:
    """The name of shard `number`, from 1, of `count`."""
    return f"model-{number:05}-of-{count:05}.safetensors"


def open_checkpoint(path: PathLike) -> Checkpoint:
    """Read the headers of a file, a directory or an index. Raises ValueError, naming file and tensor, unless all fits."""
    path = Path(path)
    index = path if path.name.endswith(".index.json") else path / INDEX
    if index.is_file():
        if index.parent.joinpath(SINGLE).is_file():
            raise ValueError(
                f"{index.parent}: expected {SINGLE} or {INDEX}, got both; remove the one that is not meant"
            )
        return _open_set(path, index)
    file = path / SINGLE if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise ValueError(f"{path}: expected {SINGLE} or {INDEX} in this directory, got neither")
    header = read(file)
    if "rquant_part" in header.metadata:
        raise ValueError(f"{file}: is {header.metadata['rquant_part']} of a checkpoint: give its directory")
    return Checkpoint(path, {file: header}, dict.fromkeys(header.tensors, file), dict(header.metadata))


def _open_set(path: Path, index: Path) -> Checkpoint:
    try:
        fields = json.loads(index.read_bytes())
        weight_map, metadata = fields["weight_map"], fields.get("metadata") or {}
        names = sorted(set(weight_map.values()))
        digests = metadata[FILES] if "rquant" in metadata else None
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("weight_map: expected names of files beside it")
        if digests is not None and (sorted(digests) != names or metadata["total_size"] < 0):
            raise ValueError(f"{FILES}: expected a digest for each file")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not a whole index ({error})") from None
    headers, files = {}, {}
    for name in names:
        file = index.parent / name
        headers[file] = header = read(file)
        if digests is not None and header.digest != digests[name]:
            raise ValueError(f"{file}: is not the file that {index.name} was written with")
        for tensor in header.tensors:
            if weight_map.get(tensor) != name:
                raise ValueError(
                    f"{file}: {tensor}: unexpected; {index.name} has it in {weight_map.get(tensor, 'no file')}"
                )
            files[tensor] = file
    for tensor, name in weight_map.items():
        if tensor not in files:
            raise ValueError(f"{index.parent / name}: {tensor}: missing, though {index.name} names it")
    total = sum(spec.nbytes for header in headers.values() for spec in header.tensors.values())
    if digests is not None and metadata["total_size"] != total:
        raise ValueError(f"{index}: expected total_size {total}, got {metadata['total_size']}")
    return Checkpoint(path, headers, files, metadata, index)


def index_text(headers: Mapping[str, Header], metadata: Mapping[str, str]) -> str:
    """The index of these files, by name; `metadata` is what a single file would have in its header."""
    weight_map = {tensor: name for name, header in headers.items() for tensor in header.tensors}
    total = sum(spec.nbytes for header in headers.values() for spec in header.tensors.values())
    digests = {name: header.digest for name, header in headers.items()}
    fields = {
        "metadata": {"total_size": total, **metadata, FILES: digests},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return json.dumps(fields, indent=2) + "\n"


def parse_size(size: int | str, argument: str) -> int:
    """Bytes, given as such or as Hugging Face does: "5GB" (1e9), "500MB", "2GiB". Raises ValueError unless positive."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B)?\s*", str(size).upper())
    unit = found and _UNITS.get(found[2] or "B")
    count = int(float(found[1]) * unit) if found and unit and not isinstance(size, bool) else 0
    if count < 1:
        raise ValueError(
            f'{argument}: expected a positive number of bytes or a size such as "5GB", got {size!r}'
        )
    return count
