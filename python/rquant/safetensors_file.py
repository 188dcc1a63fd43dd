"""A safetensors file, written one tensor at a time and put in place whole, read as views of the mapped file.

Format: 8 bytes header length (little endian), a JSON header, the tensors' bytes
(<https://github.com/huggingface/safetensors#format>).
"""

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

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
    """A tensor to write: what it will be, and `get` to make it when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    get: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def write(path: Path, entries: list[Entry], metadata: dict[str, str]) -> None:
    """Write `path` anew; on any failure the old file is as it was and nothing else is left.

    Raises ValueError for a dtype the format lacks, OSError as the system does.
    """
    for entry in entries:
        if entry.dtype not in _NAMES:
            raise ValueError(f"{entry.name}: expected a dtype of safetensors, got {entry.dtype}")
    # widest elements first: each tensor is then aligned to its element
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for entry in entries:
        offsets = [at, at := at + entry.nbytes]
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _replacing(path) as write_bytes:
        write_bytes(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            tensor = entry.get().detach().cpu().contiguous()
            if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
                raise ValueError(
                    f"{entry.name}: expected {entry.dtype} {entry.shape}, got {tensor.dtype} {tuple(tensor.shape)}"
                )
            if tensor.numel():
                write_bytes(tensor.reshape(-1).view(torch.uint8).numpy().data)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Callable[[bytes | memoryview], object]]:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Reader:
    """An open file. `table` maps names to (dtype as the file names it, shape)."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            self._file = safe_open(path, "pt").__enter__()
            self.metadata: dict[str, str] = self._file.metadata() or {}
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
        self.table = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}

    def view(self, name: str) -> Tensor:
        """The tensor, whose memory is the mapped file: copy what is to stay."""
        return self._file.get_tensor(name)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Unmap, once the last view is gone."""
        self._file.__exit__(None, None, None)
