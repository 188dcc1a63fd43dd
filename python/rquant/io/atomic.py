"""Writing a small file whole or not at all."""

import os
import secrets
from pathlib import Path


def write_file(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Put `data` (text as UTF-8) at `path`: under a temporary name beside it, then renamed. Raises OSError."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
