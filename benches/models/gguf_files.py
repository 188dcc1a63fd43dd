"""A transformers Llama as a GGUF file in float32 or float16, and what llama.cpp itself makes of that in fewer bits.

Files are kept in a folder under a name with a checksum of some of the weights, so that another model is another file.
"""

import ctypes
import zlib
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGUFWriter
from transformers import LlamaForCausalLM

FLOATS = {"F32": torch.float32, "F16": torch.float16}
QUANTIZED = {"Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15}
"""llama.cpp's number of each mix (enum llama_ftype)."""
BITS = {"F32": 32, "F16": 16, "Q8_0": 8, "Q4_0": 4, "Q4_K_M": 4}


def gguf_file(model: LlamaForCausalLM, name: str, kind: str, folder: Path) -> Path:
    """The model's file of a kind in `BITS`, written if it is not there."""
    crc = zlib.crc32(model.model.layers[-1].mlp.down_proj.weight.numpy())
    path = folder / f"{name}-{crc:08x}-{kind}.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        if kind in FLOATS:
            write(model, part, FLOATS[kind])
        else:
            quantize(gguf_file(model, name, "F16", folder), part, kind)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write(model: LlamaForCausalLM, path: Path, dtype: torch.dtype) -> None:
    """Matrices in `dtype`, vectors in float32. There is no vocabulary: the file is for token numbers only."""
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    writer = GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope_base(config))
    writer.add_file_type(
        gguf.LlamaFileType.ALL_F32 if dtype is torch.float32 else gguf.LlamaFileType.MOSTLY_F16
    )
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        part = name.split(".")[-2]
        values = weight.to(dtype if weight.ndim == 2 else torch.float32).numpy()
        if part in heads:
            values = rope_pairs(values, heads[part])
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rope_base(config) -> float:
    """Of transformers 5 or 4."""
    parameters = getattr(config, "rope_parameters", None)
    return parameters["rope_theta"] if parameters else config.rope_theta


def rope_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection `[heads * d, k]` as llama.cpp turns them: pairs at (2i, 2i + 1), not (i, i + d/2)."""
    rows, cols = weight.shape
    return np.ascontiguousarray(weight.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2)).reshape(
        rows, cols
    )


def quantize(source: Path, path: Path, kind: str) -> None:
    """By llama.cpp. Q8_0 and Q4_0 have every matrix in that type, the embedding too; Q4_K_M is llama.cpp's own mix."""
    from llama_cpp import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = QUANTIZED[kind]
    params.pure = kind != "Q4_K_M"
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp could not quantize {source} to {kind}")
