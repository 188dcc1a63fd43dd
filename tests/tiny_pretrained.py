"""Model folders small enough for a test: a llama and a bert of random weights, whose tokens are bytes."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, PAD = "<end>", "<pad>"


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte a token, and two special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, END, PAD])}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([END, PAD])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def llama(folder: Path) -> LlamaForCausalLM:
    """Two blocks; saved in `folder` too."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=256,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model


def bert(folder: Path) -> BertModel:
    """One block; saved in `folder` too."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model
