"""Text for the measurements: Lee's news items of 2001-2002, from gensim's test data.

`lee_background.cor` has 300 of them; `lee.cor` has 50 more, and `similarities0-1.txt` holds what people said
of each pair of those 50, from 0 (unrelated) to 1 (the same). Source: M. D. Lee, B. M. Pincombe, M. B. Welsh,
"An empirical evaluation of models of text document similarity", CogSci 2005.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from . import package_dir


def _folder() -> Path:
    return package_dir("gensim") / "test" / "test_data"


def _lines(name: str) -> list[str]:
    return (_folder() / name).read_text(encoding="latin-1").strip().splitlines()


def news() -> list[str]:
    """300 news items of 50 to 400 words."""
    return _lines("lee_background.cor")


def sentences(count: int) -> list[str]:
    """The first `count` sentences of the news, 20 to 200 characters each."""
    found = (s for item in news() for s in re.split(r"(?<=[.?!])\s+", item) if 20 <= len(s) <= 200)
    return [s for s, _ in zip(found, range(count), strict=False)]


def judged() -> tuple[list[str], Tensor]:
    """50 news items and how alike people found them, float32 `[50, 50]`, above the diagonal."""
    scores = [[float(s) for s in line.split()] for line in _lines("similarities0-1.txt")]
    return _lines("lee.cor"), torch.tensor(scores)


def agreement(embeddings: Tensor, scores: Tensor) -> float:
    """Pearson correlation, over all pairs, between unit embeddings' cosines and people's scores."""
    row, col = torch.triu_indices(len(scores), len(scores), 1)
    pairs = torch.stack([(embeddings @ embeddings.T)[row, col], scores[row, col]])
    return torch.corrcoef(pairs)[0, 1].item()


def windows(tokenizer, tokens: int, length: int = 512) -> Tensor:
    """At least `tokens` tokens of the news in fixed windows: int64 `[ceil(tokens / length), length]`."""
    count = -(-tokens // length)
    ids = tokenizer("\n".join(news()))["input_ids"]
    if len(ids) < count * length:
        raise ValueError(f"the news text has {len(ids)} tokens; {count * length} were asked for")
    return torch.tensor(ids[: count * length]).reshape(count, length)
