"""A directory of safetensors files with their index, put in place as a whole; the index comes last."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from .checkpoint import INDEX, SINGLE, index_text, shard_name
from .safetensors_file import Entry, write
from .sync import sync


def split(entries: Sequence[Entry], limit: int) -> list[list[Entry]]:
    """In their order, as many to a shard as `limit` bytes hold; one that is larger has a shard of its own."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards


def write_set(directory: Path, shards: Sequence[Sequence[Entry]], metadata: Mapping[str, str]) -> None:
    """Write one file, or shards and index, into `directory`, which is made if it is not there.

    All is written beside the files that are there before any of them is replaced, and what is replaced loses its index
    first: at no moment do old and new files make a checkpoint. Stale shards of an earlier save are removed.
    """
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    staging = directory / f".{secrets.token_hex(8)}"
    staging.mkdir()
    try:
        if len(shards) == 1:
            names = [SINGLE]
            write(staging / SINGLE, shards[0], metadata)
        else:
            names = [shard_name(i + 1, len(shards)) for i in range(len(shards))]
            headers = {
                name: write(
                    staging / name, entries, {"format": "pt", "rquant_part": f"part {i + 1} of {len(shards)}"}
                )
                for i, (name, entries) in enumerate(zip(names, shards, strict=True))
            }
            (staging / INDEX).write_text(index_text(headers, metadata), encoding="utf-8")
            names.append(INDEX)
        for name in (INDEX, SINGLE):
            (directory / name).unlink(missing_ok=True)
        for name in names:
            sync(staging / name)
            os.replace(staging / name, directory / name)
        for file in directory.iterdir():
            if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", file.name) and file.name not in names:
                file.unlink()
        sync(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):  # not empty: it was saved
                directory.rmdir()
