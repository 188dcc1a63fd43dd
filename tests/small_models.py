"""Models of a few thousand parameters, shaped as real ones, quantized and frozen."""

import torch
from torch import nn

import rquant


def frozen(model, weights="int4", activations=None, **arguments):
    """`model`, quantized and frozen, for inference."""
    rquant.quantize(model, weights, activations, **arguments)
    rquant.freeze(model)
    return model.eval()


class Tied(nn.Module):
    """An embedding and a head with one weight, and a layer between them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.middle, self.head = (
            nn.Embedding(20, 32),
            nn.Linear(32, 32),
            nn.Linear(32, 20, bias=False),
        )
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.relu(self.middle(self.embed(ids))))


class Logits(nn.Module):
    """A model of transformers, ids in and one tensor out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        out = self.model(ids, **({"use_cache": False} if hasattr(self.model, "lm_head") else {}))
        return out[0]


def llama():
    """Two layers of a Llama with grouped-query attention and a tied head, from a config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 40, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
    return Logits(LlamaForCausalLM(config))


def bert():
    """Two layers of a BERT, from a config."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 40, "num_hidden_layers": 2}
    return Logits(BertModel(BertConfig(**sizes, num_attention_heads=4)))
