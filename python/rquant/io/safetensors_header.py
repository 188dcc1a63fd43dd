"""The header of a safetensors file, read and laid out; torch is not needed.

Format: 8 bytes header length (little endian), a JSON header, the tensors' bytes
(<https://github.com/huggingface/safetensors#format>). With `checksums` the metadata's `rquant_tensors` holds the SHA-256 of
each tensor's bytes, in JSON: of fixed length, so that it is filled in once the bytes are written.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

ITEMSIZE = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}
CHECKSUMS = "rquant_tensors"
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Spec:
    """What a tensor is: the format's name of its dtype, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file. Raises KeyError for a dtype we do not know."""
        return ITEMSIZE[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file is to hold or holds. `start`: each tensor's first byte, counted from the beginning of the file."""

    tensors: dict[str, Spec]
    metadata: dict[str, str]
    start: dict[str, int]
    data: bytes
    """The header as it is in the file, its length included."""

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.data) + sum(spec.nbytes for spec in self.tensors.values())

    @property
    def digest(self) -> str:
        """SHA-256 of the header; with checksums it stands for the tensors too."""
        return hashlib.sha256(self.data).hexdigest()


def layout(
    tensors: Mapping[str, Spec], metadata: Mapping[str, str], checksums: Mapping[str, str] | None = None
) -> Header:
    """The header of a file of these tensors, in which each lies at a multiple of its element's size.

    `checksums`: by name; those that are not known yet may be left out, the header's length is the same.
    """
    metadata = dict(metadata)
    if checksums is not None:
        metadata[CHECKSUMS] = json.dumps({name: checksums.get(name, "0" * 64) for name in sorted(tensors)})
    # widest elements first: each tensor is then aligned to its element
    ordered = dict(sorted(tensors.items(), key=lambda item: -ITEMSIZE[item[1].dtype]))
    fields: dict[str, object] = {"__metadata__": metadata}
    start, at = {}, 0
    for name, spec in ordered.items():
        start[name] = at
        at += spec.nbytes
        fields[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [start[name], at]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = len(text).to_bytes(8, "little") + text
    return Header(ordered, metadata, {name: len(data) + first for name, first in start.items()}, data)


def read(path: PathLike) -> Header:
    """The header of a file, which must have all its bytes and no more. ValueError if not, or for an unknown dtype."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, "np"):  # checks sizes, offsets and the JSON
            pass
        with open(path, "rb") as file:
            length = file.read(8)
            data = length + file.read(int.from_bytes(length, "little"))
        fields = json.loads(data[8:])
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    metadata = fields.pop("__metadata__", None) or {}
    for name, field in fields.items():
        if field["dtype"] not in ITEMSIZE:
            raise ValueError(
                f"{path}: {name}: expected a dtype of {', '.join(ITEMSIZE)}, got {field['dtype']}"
            )
    tensors = {name: Spec(field["dtype"], tuple(field["shape"])) for name, field in fields.items()}
    start = {name: len(data) + field["data_offsets"][0] for name, field in fields.items()}
    return Header(tensors, metadata, start, data)
