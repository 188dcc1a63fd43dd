"""A model folder of transformers, float or quantized by rquant, with its tokenizer. Nothing is downloaded."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ..nn import PackedWeight
from ..serialize import load

_CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Pretrained:
    """`causal`: a language model that predicts the next token; else an encoder."""

    name: str
    model: nn.Module
    tokenizer: Any
    causal: bool

    @property
    def quantized(self) -> bool:
        """Whether any layer is."""
        return any(isinstance(module, PackedWeight) for module in self.model.modules())


def load_pretrained(folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> Pretrained:
    """The model in eval mode, in `dtype` if it is float, and its tokenizer.

    A folder with `config.json`, tokenizer and weights: as `save_pretrained` writes it, or with weights that `rquant.save`
    wrote. Raises ImportError without transformers, ValueError for a folder that is none or an architecture with an encoder and a
    decoder.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: expected a model folder with config.json, got none")
    try:
        import transformers
    except ImportError:
        raise ImportError("model folders need transformers: pip install transformers") from None
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.is_encoder_decoder:
        raise ValueError(
            f"{folder}: expected a language model or an encoder, got {config.model_type}, which is both"
        )
    architecture = (config.architectures or [""])[0]
    causal = architecture.endswith(_CAUSAL)
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    if _saved_by_rquant(folder) and getattr(config, "quantization_config", None) is None:
        with torch.device("meta"):
            model = auto.from_config(config)
        file = folder / "model.safetensors"
        load(file if file.is_file() else folder, model)
    else:
        model = auto.from_pretrained(folder, dtype=dtype, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Pretrained(folder.resolve().name, model.eval(), tokenizer, causal)


def _saved_by_rquant(folder: Path) -> bool:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return "rquant" in (json.loads(index.read_bytes()).get("metadata") or {})
    file = folder / "model.safetensors"
    if not file.is_file():
        return False
    with safe_open(file, "pt") as opened:
        return "rquant" in (opened.metadata() or {})
