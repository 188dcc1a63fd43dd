"""One safetensors file being written, tensor after tensor, each in blocks and each but once."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from .._native import Array
from ..io.safetensors_header import Header, Spec, layout
from ..io.sync import sync

_AT_ONCE = 256 * 2**20  # bytes written between two waits for the disk: what an interruption loses at most


class Output:
    """A file of known tensors, open under the name `PATH.part`; `checksums` has those that are written."""

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, Spec],
        metadata: Mapping[str, str],
        checksums: Mapping[str, str],
    ) -> None:
        self._path, self._tensors, self._metadata = path, tensors, metadata
        self._part = path.with_name(path.name + ".part")
        self._header = layout(tensors, metadata, {})
        whole = self._part.is_file() and self._part.stat().st_size == self._header.nbytes
        self.checksums = dict(checksums) if whole else {}
        self._unsynced = 0
        self._file: BinaryIO = open(self._part, "r+b" if whole else "w+b", buffering=0)  # noqa: SIM115 (close())
        self._file.truncate(self._header.nbytes)

    def write(self, name: str, blocks: Iterable[Array | memoryview]) -> None:
        """The bytes of a tensor, in order."""
        digest = hashlib.sha256()
        self._file.seek(self._header.start[name])
        count = 0
        for block in blocks:
            view = memoryview(block).cast("B")
            while view:
                view = view[self._file.write(view) :]
            digest.update(block)
            count += memoryview(block).nbytes
        if count != self._tensors[name].nbytes:
            raise RuntimeError(f"{name}: wrote {count} of {self._tensors[name].nbytes} bytes")
        self.checksums[name] = digest.hexdigest()
        self._unsynced += count

    def saved(self) -> bool:
        """Whether so much was written since the last time that it was now brought to disk."""
        if self._unsynced < _AT_ONCE:
            return False
        os.fsync(self._file.fileno())
        self._unsynced = 0
        return True

    def finish(self) -> Header:
        """Fill in the checksums and give the file its name."""
        header = layout(self._tensors, self._metadata, self.checksums)
        self._file.seek(0)
        self._file.write(header.data)
        self.close()
        sync(self._part)
        os.replace(self._part, self._path)
        return header

    def close(self) -> None:
        """Close the file as it is."""
        self._file.close()
