"""The configuration of format 1, and the digest that goes with it; torch is not needed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import _rquant

FORMAT = 1
Config = dict[str, Any]
Table = Mapping[str, tuple[str, tuple[int, ...]]]  # dtype as the format names it, and shape


def signed(config: Config, table: Table) -> dict[str, str]:
    """The metadata of a checkpoint of these tensors: the configuration with its format, and the digest over both."""
    text = json.dumps(
        {"format": FORMAT, "rquant": _rquant.__version__, "checksums": "sha256", **config}, sort_keys=True
    )
    return {"rquant": text, "rquant_sha256": _digest(text, table)}


def _digest(config: str, table: Table) -> str:
    rows = sorted((name, dtype, list(shape)) for name, (dtype, shape) in table.items())
    return hashlib.sha256(json.dumps([config, rows]).encode()).hexdigest()


def read_config(path: Path, metadata: Mapping[str, str], table: Table) -> Config:
    """The inverse of `signed`. Raises ValueError, naming `path`, for what it did not write, and for a newer format."""
    if "rquant" not in metadata:
        raise ValueError(f"{path}: expected a file written by rquant.save, got one without its metadata")
    try:
        config = json.loads(metadata["rquant"])
        version = config["format"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: the configuration in the header is damaged") from None
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(
            f"{path}: expected format {FORMAT} or older, got format {version} (written by rquant "
            f"{config.get('rquant')}; this is rquant {_rquant.__version__})"
        )
    if _digest(metadata["rquant"], table) != metadata.get("rquant_sha256"):
        raise ValueError(f"{path}: the header is damaged: its checksum does not fit")
    return config  # type: ignore[no-any-return]
