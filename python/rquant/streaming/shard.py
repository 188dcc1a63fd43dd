"""One source file on its way to one output file."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .. import _rquant
from .._native import Array, NotFinite
from ..io.safetensors_header import Header, Spec
from ..qtypes import qbfloat16, qfloat16
from .blocks import BLOCK, as_matrix, codes, scales
from .choice import Choice
from .output import Output
from .progress import Progress
from .work import Workspace

_PARTS = ("_packed", "_scale", "_zero_point")
_SCALES = {"<f4": "F32", "<f2": "F16"}
_CASTS = {qfloat16: "F16", qbfloat16: "BF16"}


class _Wide(Exception):
    """A weight has a scale outside float16's normal range: its scales take 4 bytes, and the file is laid out anew."""


class Shard:
    """`metadata` tells the output's, given its tensors; `buffer` takes the largest weight and at least one block."""

    def __init__(
        self,
        path: Path,
        header: Header,
        choices: Mapping[str, Choice],
        metadata: Callable[[dict[str, Spec]], dict[str, str]],
        buffer: Array,
    ) -> None:
        self._path, self._header, self._metadata, self._buffer = path, header, metadata, buffer
        self._names = sorted(header.tensors, key=header.start.__getitem__)  # read from front to back
        self._choices = {name: choices[name] for name in self._names if name in choices}

    def write(self, target: Path, work: Workspace, bar: Progress) -> None:
        """Write `target`, going on from where the workspace says that it was left."""
        done = work.progress if work.progress.get("file") == target.name else {}
        with open(self._path, "rb", buffering=0) as source:
            moved = bar.moved
            try:
                self._write(source, target, done.get("wide", []), done.get("checksums", {}), work, bar)
            except _Wide:
                bar.add(moved - bar.moved)
                self._write(source, target, self._wide(source), {}, work, bar)

    def _parts(self, name: str, wide: list[str]) -> dict[str, Spec]:
        """What becomes of a tensor, by names."""
        spec, choice = self._header.tensors[name], self._choices.get(name)
        if choice is None:
            return {name: spec}
        (n, k), scheme = choice.shape(spec), choice.scheme
        if scheme.qtype.is_cast:
            return {name + _PARTS[0]: Spec(_CASTS[scheme.qtype], (n, k))}
        groups = (n, scheme.groups(k))
        large = scheme.per_channel or name in wide
        specs = (
            Spec("U8", (n, _rquant.row_bytes(k, scheme.kind))),
            Spec("F32" if large else "F16", groups),
            Spec("F16" if scheme.zero_point_dtype == "float16" else "U8", groups),
        )
        made = zip(_PARTS, specs[: 2 if scheme.symmetric else 3], strict=False)
        return {name + part: spec for part, spec in made}

    def _write(
        self,
        source: BinaryIO,
        target: Path,
        wide: list[str],
        checksums: Mapping[str, str],
        work: Workspace,
        bar: Progress,
    ) -> None:
        parts = {name: self._parts(name, wide) for name in self._names}
        tensors = {part: spec for made in parts.values() for part, spec in made.items()}
        output = Output(target, tensors, self._metadata(tensors), checksums)
        try:
            for name in self._names:
                if all(part in output.checksums for part in parts[name]):
                    bar.skip(self._header.tensors[name].nbytes)
                    continue
                if name in self._choices:
                    self._quantize(source, name, parts[name], output, bar)
                else:
                    output.write(name, self._read(source, name, BLOCK, bar))
                if output.saved():
                    work.commit({"file": target.name, "wide": wide, "checksums": output.checksums})
            output.finish()
        finally:
            output.close()

    def _quantize(
        self, source: BinaryIO, name: str, parts: Mapping[str, Spec], output: Output, bar: Progress
    ) -> None:
        matrix, scheme = self._matrix(source, name, bar), self._choices[name].scheme
        scale, zero = self._scales(matrix, name)
        values = [value for value in (scale, zero) if value is not None]
        packed, *rest = parts
        if scale is not None and parts[rest[0]].dtype != _SCALES[scale.dtype.str]:
            raise _Wide
        for part, value in zip(rest, values, strict=True):
            output.write(part, [value])
        output.write(packed, codes(matrix, scheme, scale, zero))

    def _wide(self, source: BinaryIO) -> list[str]:
        """All weights that have scales outside float16's normal range."""
        found = []
        for name, choice in self._choices.items():
            if not choice.scheme.per_channel:
                scale, _ = self._scales(self._matrix(source, name, None), name)
                found += [name] if scale is not None and scale.dtype == np.float32 else []
        return found

    def _matrix(self, source: BinaryIO, name: str, bar: Progress | None) -> Array:
        spec = self._header.tensors[name]
        for _ in self._read(source, name, len(self._buffer), bar):
            pass  # one read fills the buffer
        return as_matrix(self._buffer[: spec.nbytes], spec, self._choices[name].transposed)

    def _scales(self, matrix: Array, name: str) -> tuple[Array | None, Array | None]:
        try:
            return scales(matrix, self._choices[name].scheme)
        except NotFinite as bad:
            raise ValueError(f"{self._path}: {bad.named(name, self._header.tensors[name].shape)}") from None

    def _read(self, source: BinaryIO, name: str, most: int, bar: Progress | None) -> Iterator[memoryview]:
        """A tensor's bytes in pieces of `most`, each in the buffer, where the next one will be."""
        source.seek(self._header.start[name])
        left = self._header.tensors[name].nbytes
        while left:
            piece = memoryview(self._buffer)[: min(left, most)]
            have = 0
            while have < len(piece):
                # read, not mapped: a mapped file's pages would count as this process's memory
                count = source.readinto(piece[have : have + BLOCK])  # type: ignore[attr-defined]
                if not count:
                    raise ValueError(f"{self._path}: {name}: the file became shorter while it was read")
                have += count
                if bar is not None:
                    bar.add(count)
            left -= have
            yield piece
