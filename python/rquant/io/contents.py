"""What a checkpoint holds, told from its headers alone: packed layers with their schemes, and the tensors beside them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..scheme import Scheme
from .checkpoint import Checkpoint, open_checkpoint
from .configuration import read_config
from .safetensors_header import PathLike, Spec

_PARTS = ("weight_packed", "weight_scale", "weight_zero_point")


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """A packed weight `[rows, cols]`; where transformers wrote it, `cols` counts the padding of a row to 4 bytes."""

    name: str
    rows: int
    cols: int
    scheme: Scheme
    activations: str | None
    nbytes: int
    file: str

    @property
    def bits(self) -> float:
        """Bits of a weight, scales and zero points included."""
        return self.nbytes * 8 / max(self.rows * self.cols, 1)


@dataclass(frozen=True)
class Contents:
    """`rest`: every tensor that is no part of a packed layer. `ties`: names that share one tensor, the stored one first."""

    checkpoint: Checkpoint
    layers: list[PackedLayer]
    rest: dict[str, Spec]
    ties: list[list[str]]

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed layers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def rest_bytes(self) -> int:
        """Bytes of everything else."""
        return sum(spec.nbytes for spec in self.rest.values())


def read_contents(path: PathLike) -> Contents:
    """Of a file or directory, quantized or float. Raises ValueError, naming file and tensor, for a damaged one."""
    checkpoint = open_checkpoint(path)
    tensors = checkpoint.tensors
    modules, ties = _described(Path(path), checkpoint)
    layers, rest = [], dict(tensors)
    for name in [name for name in tensors if name.endswith(".weight_packed") or name == "weight_packed"]:
        prefix = name[: -len("weight_packed")]
        file = checkpoint.files[name]
        entry = modules.get(prefix.rstrip("."))
        if entry is None:
            raise ValueError(
                f"{file}: {name}: packed, but nothing says how: no metadata of rquant, no quantization_config"
            )
        parts = [rest.pop(prefix + part) for part in _PARTS if prefix + part in rest]
        scheme = Scheme.from_dict(entry)
        rows, row_bytes = parts[0].shape
        cols = row_bytes * 8 // scheme.bits
        if "shape" in entry:
            cols = entry["shape"][1]
        elif not scheme.per_channel and len(parts) > 1:
            cols = min(cols, parts[1].shape[1] * scheme.group_size)
        size = sum(part.nbytes for part in parts)
        activations = entry.get("activations") if "Embedding" not in entry["class"] else None
        layers.append(PackedLayer(prefix.rstrip("."), rows, cols, scheme, activations, size, file.name))
    return Contents(checkpoint, layers, rest, ties)


def _described(path: Path, checkpoint: Checkpoint) -> tuple[dict[str, Any], list[list[str]]]:
    """Entries by module, and ties: from our own metadata, or from the config.json that transformers wrote."""
    if "rquant" in checkpoint.metadata:
        table = {name: (spec.dtype, spec.shape) for name, spec in checkpoint.tensors.items()}
        config = read_config(path, checkpoint.metadata, table)
        return config["modules"], config["ties"]
    beside = (path if path.is_dir() else path.parent) / "config.json"
    if not beside.is_file():
        return {}, []
    try:
        config = json.loads(beside.read_bytes()).get("quantization_config") or {}
        modules = {name: entry for entry in config.get("layers") or () for name in entry["names"]}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{beside}: expected transformers' configuration ({error})") from None
    return modules, config.get("ties") or []
