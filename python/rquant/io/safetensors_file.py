"""A safetensors file, written one layer at a time and put in place whole, read as views of the mapped file."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .atomic import replacing
from .checkpoint import open_checkpoint
from .safetensors_header import CHECKSUMS, Header, Spec, layout

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """The format's name of a dtype. Raises ValueError if it has none."""
    if dtype not in _NAMES:
        raise ValueError(f"expected a dtype of safetensors, got {dtype}")
    return _NAMES[dtype]


@dataclass(frozen=True)
class Entry:
    """Tensors that are made together: what they will be, and `get` to make them, in this order, when their turn comes."""

    tensors: dict[str, Spec]
    get: Callable[[], Sequence[Tensor]]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], get: Callable[[], Sequence[Tensor]]) -> "Entry":
        """`tensors` may be on the meta device. Raises ValueError, naming it, for a dtype the format lacks."""
        specs = {}
        for name, tensor in tensors.items():
            try:
                specs[name] = Spec(dtype_name(tensor.dtype), tuple(tensor.shape))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return cls(specs, get)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return sum(spec.nbytes for spec in self.tensors.values())


def write(path: Path, entries: Sequence[Entry], metadata: Mapping[str, str]) -> Header:
    """Write `path` anew, with checksums; on any failure the old file is as it was and nothing else is left.

    Each entry is made once, and let go before the next one is. Raises OSError as the system does.
    """
    tensors = {name: spec for entry in entries for name, spec in entry.tensors.items()}
    header = layout(tensors, metadata, checksums={})
    sums: dict[str, str] = {}
    with replacing(path) as temporary, open(temporary, "xb") as file:
        for entry in entries:
            for (name, spec), made in zip(entry.tensors.items(), entry.get(), strict=True):
                tensor = made.detach().cpu().contiguous()
                if (_NAMES.get(tensor.dtype), tuple(tensor.shape)) != (spec.dtype, spec.shape):
                    raise ValueError(
                        f"{name}: expected {spec.dtype} {spec.shape}, got {tensor.dtype} {tuple(tensor.shape)}"
                    )
                file.seek(header.start[name])
                file.write(_bytes(tensor))
                sums[name] = checksum(tensor)
        header = layout(tensors, metadata, sums)
        file.seek(0)
        file.write(header.data)
        file.flush()
        os.fsync(file.fileno())
    return header


def _bytes(tensor: Tensor) -> memoryview:
    if not tensor.numel():
        return memoryview(b"")
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data  # type: ignore[no-any-return]


def checksum(tensor: Tensor) -> str:
    """SHA-256 of a CPU tensor's bytes."""
    return hashlib.sha256(_bytes(tensor)).hexdigest()


class Reader:
    """An open checkpoint, a file or several. `table` maps names to (dtype as the file names it, shape)."""

    def __init__(self, path: Path) -> None:
        self._checkpoint = open_checkpoint(path)
        self.metadata = self._checkpoint.metadata
        self.table = {name: (spec.dtype, spec.shape) for name, spec in self._checkpoint.tensors.items()}
        self._files: dict[Path, Any] = {}
        self._checksums: dict[str, str] = {}
        for file, header in self._checkpoint.headers.items():
            try:
                self._checksums |= json.loads(header.metadata.get(CHECKSUMS, "{}"))
                self._files[file] = safe_open(file, "pt").__enter__()
            except (SafetensorError, OSError, ValueError, TypeError) as error:
                self.close()
                raise ValueError(f"{file}: not a whole safetensors file ({error})") from None

    def file_of(self, name: str) -> Path:
        """The file that a tensor is in; for a name that is in none, what was opened."""
        return self._checkpoint.files.get(name, self._checkpoint.path)

    def view(self, name: str) -> Tensor:
        """The tensor, whose memory is the mapped file: copy what is to stay."""
        return self._files[self.file_of(name)].get_tensor(name)  # type: ignore[no-any-return]

    def verify(self, name: str) -> None:
        """Raise ValueError if the tensor's bytes are not those that were written."""
        if self._checksums.get(name) != checksum(self.view(name)):
            raise ValueError(
                f"{self.file_of(name)}: {name}: its bytes are not those that were saved (SHA-256)"
            )

    def close(self) -> None:
        """Unmap, once the last view is gone."""
        for file in self._files.values():
            file.__exit__(None, None, None)
