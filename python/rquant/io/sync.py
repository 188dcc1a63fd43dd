"""Have the system write to disk."""

import os

from .safetensors_header import PathLike


def sync(path: PathLike) -> None:
    """Wait until a file, or the names in a directory, are on disk. Raises OSError."""
    folder = os.path.isdir(path)
    if folder and os.name == "nt":
        return  # Windows has nothing of the kind
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
