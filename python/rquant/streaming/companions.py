"""What lies beside the weights in a Hugging Face directory, copied; config.json tells how the weights are quantized."""

import json
import shutil
from pathlib import Path
from typing import Any

from ..io.sync import sync

CONFIG = "config.json"
_WEIGHTS = {
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
    ".ot",
    ".tflite",
}


def hf_config(source: Path) -> dict[str, Any]:
    """config.json of a directory, or beside a file; empty if there is none. ValueError if it is no JSON object."""
    path = (source if source.is_dir() else source.parent) / CONFIG
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
        config.get("model_type")
    except (ValueError, AttributeError):
        raise ValueError(f"{path}: expected a JSON object") from None
    return config  # type: ignore[no-any-return]


def copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizers, templates, licences and the like: every file that is neither weights, their index nor hidden."""
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if (
            not path.is_file()
            or path.suffix in _WEIGHTS
            or path.name.endswith(".index.json")
            or any(part.startswith(".") for part in relative.parts)
        ):
            continue
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        sync(target)
