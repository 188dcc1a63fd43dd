"""`quantize_checkpoint`: safetensors to safetensors, a file or a Hugging Face directory."""

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import _rquant
from .._native import Array
from ..io.checkpoint import INDEX, Checkpoint, index_text, open_checkpoint
from ..io.configuration import signed
from ..io.safetensors_header import PathLike, Spec, read
from ..io.sync import sync
from ..scheme import Scheme
from .blocks import BLOCK
from .choice import Choice, Wish, choose, module_of
from .companions import CONFIG, copy_companions, hf_config
from .hf import quantization_config
from .progress import Progress
from .shard import Shard
from .work import Workspace, workspace

_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Summary:
    """What was done. `kept`: tensors that stay as they were, with the reason and their bytes.

    `seconds` and `moved`, bytes of the source, are of this run; `resumed` were done by an earlier one.
    """

    out: Path
    quantized: dict[str, Scheme]
    kept: dict[str, tuple[str, int]]
    bytes_before: int
    bytes_after: int
    seconds: float
    moved: int
    resumed: int

    def reasons(self) -> dict[str, tuple[int, int]]:
        """Why tensors were kept: how many, and their bytes; the most bytes first."""
        found: dict[str, tuple[int, int]] = {}
        for reason, size in self.kept.values():
            count, total = found.get(reason, (0, 0))
            found[reason] = count + 1, total + size
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def quantize_checkpoint(source: PathLike, out: PathLike, wish: Wish, progress: bool = False) -> Summary:
    """Quantize the weights that `choice` finds in `source`, a file or directory; `out` becomes the same kind.

    Every packed tensor has the bits that `rquant.Linear.from_float` gives. In memory at a time: the largest weight and a few
    blocks. `out` appears whole or not at all; after an interruption the same call goes on where it was and the bytes
    are those of an undisturbed run (the unfinished result is in `OUT.partial`).

    Raises ValueError, naming argument or file and tensor: a damaged source, one that is quantized already, NaN or infinity in
    a weight, a pattern that matches nothing, an `out` that exists.
    """
    began, source, out = time.monotonic(), Path(source), Path(out)
    if source.name.endswith(".index.json"):
        source = source.parent
    checkpoint = open_checkpoint(source)
    if source.is_dir() and source.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"out: expected a path outside of {source}, got {out}")
    if out.is_dir() and not source.is_dir():
        raise ValueError(f"out: expected the name of a file, as {source} is one, got the directory {out}")
    config = hf_config(source)
    try:
        choices, kept = choose(checkpoint.tensors, wish, config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    before = sum(spec.nbytes for spec in checkpoint.tensors.values())
    conversion = _Conversion(checkpoint, choices, wish, config)
    with workspace(out, conversion.job()) as work:
        bar = Progress(before, progress and not work.finished)
        try:
            if not work.finished:
                conversion.run(work, bar)
        finally:
            bar.close()
    after = sum(spec.nbytes for spec in open_checkpoint(out).tensors.values())
    quantized = {module_of(name): choice.scheme for name, choice in choices.items()}
    told = {name: (reason, checkpoint.tensors[name].nbytes) for name, reason in kept.items()}
    seconds = time.monotonic() - began
    return Summary(out, quantized, told, before, after, seconds, bar.moved, bar.resumed)


class _Conversion:
    def __init__(
        self, checkpoint: Checkpoint, choices: dict[str, Choice], wish: Wish, config: dict[str, Any]
    ) -> None:
        self._checkpoint, self._choices, self._wish = checkpoint, choices, wish
        self._directory = checkpoint.path.is_dir()
        self._hf_config = config if self._directory else {}
        tensors = checkpoint.tensors
        self._described = {
            "from": "state_dict",
            "modules": {
                module_of(name): {
                    "class": choice.kind,
                    **choice.scheme.to_dict(),
                    "activations": wish.activations_name,  # of an embedding: for what is tied to it
                    "dtype": _NAMES[tensors[name].dtype],
                    "shape": list(choice.shape(tensors[name])),
                    "transposed": choice.transposed,
                }
                for name, choice in choices.items()
            },
            "ties": [],
            "buffers": [],
        }
        largest = max((tensors[name].nbytes for name in choices), default=0)
        self._buffer: Array = np.empty(max(largest, BLOCK), np.uint8)

    def job(self) -> dict[str, Any]:
        """All that decides what comes out."""
        files = [
            [str(path.resolve()), header.digest, path.stat().st_size, path.stat().st_mtime_ns]
            for path, header in self._checkpoint.headers.items()
        ]
        return {
            "rquant": _rquant.__version__,
            "files": files,
            "described": self._described,
            "config": self._hf_config,
        }

    def _metadata(self, tensors: dict[str, Spec]) -> dict[str, str]:
        table = {name: (spec.dtype, spec.shape) for name, spec in tensors.items()}
        return {"format": "pt", **signed(self._described, table)}

    def _part(self, number: int, tensors: dict[str, Spec]) -> dict[str, str]:
        return {"format": "pt", "rquant_part": f"part {number} of {len(self._checkpoint.headers)}"}

    def run(self, work: Workspace, bar: Progress) -> None:
        """Write every file, then what else belongs to a directory, and put the result in place."""
        result = work.files / work.out.name
        if self._directory:
            result.mkdir(exist_ok=True)
        made = {}
        for i, (path, header) in enumerate(self._checkpoint.headers.items()):
            target = result / path.name if self._directory else result
            if target.is_file():
                bar.skip(sum(spec.nbytes for spec in header.tensors.values()))
            else:
                metadata = partial(self._part, i + 1) if self._checkpoint.index else self._metadata
                Shard(path, header, self._choices, metadata, self._buffer).write(target, work, bar)
            made[target.name] = read(target)
        if self._directory:
            self._finish_directory(result, made)
        work.publish()

    def _finish_directory(self, folder: Path, made: dict[str, Any]) -> None:
        copy_companions(self._checkpoint.path, folder)
        if self._hf_config:
            quantized = quantization_config(
                self._hf_config, self._checkpoint.tensors, self._choices, self._wish
            )
            text = json.dumps({**self._hf_config, "quantization_config": quantized}, indent=2) + "\n"
            (folder / CONFIG).write_text(text, encoding="utf-8")
            sync(folder / CONFIG)
        if self._checkpoint.index:
            tensors = {name: spec for header in made.values() for name, spec in header.tensors.items()}
            (folder / INDEX).write_text(index_text(made, self._metadata(tensors)), encoding="utf-8")
            sync(folder / INDEX)
        sync(folder)
