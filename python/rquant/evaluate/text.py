"""Text to measure on: a file's, or English prose that every Python has."""

import hashlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Text:
    """`name` and digest go into reports: only figures on the same text can be compared."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        """Of the text in UTF-8."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    def tokens(self, tokenizer: Any, most: int) -> Tensor:
        """The first `most` token ids, or all if there are fewer, int64 `[n]`; no special tokens are added."""
        content = self.content[: 16 * most + 4096]  # a token is rarely over 16 characters
        ids = tokenizer(content, add_special_tokens=False)["input_ids"]
        if len(ids) < most and len(content) < len(self.content):
            ids = tokenizer(self.content, add_special_tokens=False)["input_ids"]
        return torch.tensor(ids[:most], dtype=torch.int64)

    def sentences(self, count: int) -> list[str]:
        """The first `count` sentences of 20 to 200 characters."""
        found = (" ".join(s.split()) for s in re.split(r"(?<=[.?!])\s+", self.content))
        return [s for s, _ in zip((s for s in found if 20 <= len(s) <= 200), range(count), strict=False)]


def read_text(path: str | os.PathLike[str]) -> Text:
    """A UTF-8 file. Raises ValueError for one that is not, or is empty; OSError."""
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got {error}") from None
    if not content.strip():
        raise ValueError(f"{path}: expected text, got an empty file")
    return Text(path.name, content)


def builtin_text() -> Text:
    """The prose of the Python language reference, out of the standard library (`pydoc_data.topics`): some 30,000 words.

    It differs from version to version of Python; to compare over machines give a file of your own.
    """
    from pydoc_data.topics import topics  # half a megabyte, only for this

    paragraphs = (p for name in sorted(topics) for p in topics[name].split("\n\n"))
    prose = [
        " ".join(p.split()) for p in paragraphs if len(p) > 120 and not re.search(r"^[\s*+|-]|:=", p, re.M)
    ]
    return Text(f"language reference of Python {platform.python_version()}", "\n".join(prose))
