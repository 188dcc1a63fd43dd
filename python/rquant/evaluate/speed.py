"""Milliseconds a token of language models with a key-value cache, measured in turns.

Each round every model reads the prompt, or writes a few tokens: whatever else the machine does meanwhile hits all alike.
"""

import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..progress import bar
from .batches import device_of, evaluating

PAUSE = 0.02  # seconds before a turn: the threads of the one before spin a while before they sleep


@dataclass
class Speed:
    """Seconds of each turn: `prefill` of a whole prompt, `decode` of one token."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)

    @property
    def prefill_ms(self) -> float:
        """Milliseconds to read the prompt; median."""
        return 1e3 * median(self.prefill)

    @property
    def ms_per_token(self) -> float:
        """Milliseconds to write a token; median."""
        return 1e3 * median(self.decode)


class Writer:
    """Greedy decoding: a model, its cache and its next token."""

    def __init__(self, model: nn.Module, prompt: Tensor) -> None:
        self._model, self._prompt = model, prompt.to(device_of(model))
        # only the last logits are wanted; not every model knows how to leave the others out
        known = inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self._next, self._cache = self._prompt, None
        self.tokens: list[int] = []

    def read(self) -> None:
        """Forget everything and read the prompt at once."""
        self._next, self._cache, self.tokens = self._prompt, None, []
        self.write(1)

    def write(self, count: int) -> None:
        """Append the `count` likeliest next tokens to `tokens`, one forward each."""
        for _ in range(count):
            output = self._model(self._next, past_key_values=self._cache, use_cache=True, **self._options)
            self._cache = output.past_key_values
            self._next = output.logits[:, -1].argmax(-1, keepdim=True)
            self.tokens.append(int(self._next))


def speeds(
    models: Mapping[str, nn.Module], prompt: Tensor, generate: int, *, rounds: int = 5, chunk: int = 16
) -> dict[str, Speed]:
    """Seconds of `rounds` prefills of `prompt`, int64 `[1, tokens]`, and of `generate` tokens written after it.

    A model is called as transformers' causal language models are: `(ids, past_key_values=, use_cache=True)`, giving `logits` and
    `past_key_values`. A round that is not counted goes before. Raises ValueError for a prompt of another shape and counts below 1.
    """
    if prompt.dim() != 2 or prompt.shape[0] != 1 or not prompt.shape[1]:
        raise ValueError(f"prompt: expected shape [1, tokens >= 1], got {tuple(prompt.shape)}")
    for argument, value in (("generate", generate), ("rounds", rounds), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{argument}: expected at least 1, got {value}")
    found = {name: Speed() for name in models}
    turns = [min(chunk, generate - done) for done in range(0, generate, chunk)]
    with evaluating(*models.values()), bar(len(models) * (rounds + 1 + len(turns)), "prefill") as shown:
        writers = {name: Writer(model, prompt) for name, model in models.items()}
        for counted in range(-1, rounds):
            for name, writer in writers.items():
                seconds = _timed(writer.read)
                if counted >= 0:
                    found[name].prefill.append(seconds)
                shown.update()
        shown.set_description("decode")
        for count in turns:
            for name, writer in writers.items():
                found[name].decode.append(_timed(lambda w=writer, n=count: w.write(n)) / count)  # type: ignore[misc]
                shown.update()
    return found


def _timed(run: Any) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
