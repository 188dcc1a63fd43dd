"""A llama-architecture GGUF file as float32 tensors, a transformers config and a tokenizer.

The file's weights are blocks of 4-bit (Q4_1) and 8-bit (Q8_0) codes; here they are expanded to float32, and
that is the float model the demo compares with.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_CONTROL = 3  # tokenizer.ggml.token_type of special tokens


class GgufFile:
    """One open file: `config()`, `state_dict()`, `tokenizer()`."""

    def __init__(self, path: Path):
        self._reader = gguf.GGUFReader(path)

    def field(self, name: str):
        """One metadata value, as the Python object it stands for."""
        return self._reader.fields[name].contents()

    def config(self) -> LlamaConfig:
        """Sizes, rope base and ties of the model."""
        tensors = {t.name for t in self._reader.tensors}
        base = self.field("llama.rope.freq_base")
        return LlamaConfig(
            vocab_size=self.field("llama.vocab_size"),
            hidden_size=self.field("llama.embedding_length"),
            intermediate_size=self.field("llama.feed_forward_length"),
            num_hidden_layers=self.field("llama.block_count"),
            num_attention_heads=self.field("llama.attention.head_count"),
            num_key_value_heads=self.field("llama.attention.head_count_kv"),
            max_position_embeddings=self.field("llama.context_length"),
            rms_norm_eps=self.field("llama.attention.layer_norm_rms_epsilon"),
            rope_parameters={"rope_type": "default", "rope_theta": base},  # transformers 5
            rope_theta=base,  # transformers 4
            tie_word_embeddings="output.weight" not in tensors,
            bos_token_id=self.field("tokenizer.ggml.bos_token_id"),
            eos_token_id=self.field("tokenizer.ggml.eos_token_id"),
            pad_token_id=None,
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every tensor in float32 under the name `LlamaForCausalLM` gives it."""
        heads = {
            "attn_q": self.field("llama.attention.head_count"),
            "attn_k": self.field("llama.attention.head_count_kv"),
        }
        state = {}
        for tensor in self._reader.tensors:
            *block, part, kind = tensor.name.split(".")
            values = dequantize(tensor.data, tensor.tensor_type)
            if part in heads:
                values = rope_halves(values, heads[part])
            name = f"model.layers.{block[1]}.{_BLOCK[part]}" if block else _TOP[part]
            state[f"{name}.{kind}"] = torch.from_numpy(np.array(values, dtype=np.float32))
        return state

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Byte-level BPE from the vocabulary and merges in the file; digits are split one by one."""
        tokens = self.field("tokenizer.ggml.tokens")
        types = self.field("tokenizer.ggml.token_type")
        merges = [tuple(merge.split(" ")) for merge in self.field("tokenizer.ggml.merges")]
        bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        bpe.decoder = decoders.ByteLevel()
        bpe.add_special_tokens([t for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL])
        fast = PreTrainedTokenizerFast(
            tokenizer_object=bpe,
            bos_token=tokens[self.field("tokenizer.ggml.bos_token_id")],
            eos_token=tokens[self.field("tokenizer.ggml.eos_token_id")],
            clean_up_tokenization_spaces=False,
        )
        fast.chat_template = self.field("tokenizer.chat_template")
        return fast


def rope_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a q or k projection, `[heads * d, k]`.

    The file has the two halves of a rotated pair at (2i, 2i + 1) of a head, transformers at (i, i + d/2).
    """
    rows, cols = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)
