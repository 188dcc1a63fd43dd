"""The float32 models that the arms are made of, and the tokens they read."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from zoo import smollm2, texts

Source = tuple[LlamaForCausalLM, Tensor]


def smollm2_135m(tokens: int) -> Source:
    """SmolLM2-135M out of its package, and news."""
    model, tokenizer = smollm2.load()
    return model, texts.windows(tokenizer, tokens, tokens)[0]


def llama_1b(tokens: int) -> Source:
    """1.10 billion random weights in the shape of a Llama, and random tokens; the same every time."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return model, torch.randint(3, config.vocab_size, (tokens,))


SOURCES: dict[str, Callable[[int], Source]] = {"smollm2-135m": smollm2_135m, "llama-1b": llama_1b}
"""Name -> a function that makes the model, in eval mode, and int64 `[tokens]`."""
