"""Language models: perplexity in fixed windows, and how far a model's next-token distributions are from another's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..progress import bar
from .batches import call, evaluating, tensor_of
from .outputs import Agreement, LogitComparison


@dataclass(frozen=True, slots=True)
class LanguageQuality:
    """Over `tokens` scored tokens: exp of their mean negative log likelihood (nats), the share guessed right, and how the
    distributions agree with the reference's (None without one)."""

    tokens: int
    perplexity: float
    accuracy: float
    agreement: Agreement | None


def windows(tokens: Tensor, length: int = 512, count: int | None = None) -> Tensor:
    """The first `count` windows of `length` tokens (None: all that are whole), int64 `[count, length]`, side by side.

    `tokens`: int64 `[n]`. Raises ValueError if they are too few.
    """
    if tokens.dim() != 1:
        raise ValueError(f"tokens: expected one dimension, got shape {tuple(tokens.shape)}")
    if length < 2:
        raise ValueError(f"length: expected at least 2 (one token given, one scored), got {length}")
    whole = len(tokens) // length
    if count is None:
        count = whole
    if not 1 <= count <= whole:
        raise ValueError(
            f"count: expected 1 to {whole} windows of {length} in {len(tokens)} tokens, got {count}"
        )
    return tokens[: count * length].reshape(count, length)


def compare(
    models: Mapping[str, nn.Module], windows: Tensor, reference: nn.Module | None = None, *, given: int = 1
) -> dict[str, LanguageQuality]:
    """Perplexity, accuracy and agreement of several models, window by window, so that the reference runs once for all.

    `windows`: int64 `[count, length]`; each is read from scratch. Its first `given` tokens are not scored: 1 is the usual
    perplexity, `length // 2` what llama.cpp prints. A model takes ids `[1, tokens]` and gives logits `[1, tokens, vocabulary]`,
    itself or as `.logits`. The reference may be among `models`.
    Raises ValueError for windows of another shape, ids outside the logits, `given` beyond the window.
    """
    if windows.dim() != 2 or windows.shape[1] < 2 or not windows.shape[0]:
        raise ValueError(f"windows: expected shape [count >= 1, length >= 2], got {tuple(windows.shape)}")
    if not 1 <= given < windows.shape[1]:
        raise ValueError(f"given: expected 1 to {windows.shape[1] - 1}, got {given}")
    names = {name: model for name, model in models.items() if model is not reference}
    nll, right = dict.fromkeys(models, 0.0), dict.fromkeys(models, 0)
    compared = {name: LogitComparison() for name in models} if reference is not None else {}
    everyone = [*models.values()] if reference is None else [*models.values(), reference]
    with evaluating(*everyone), bar(len(windows) * len(models), "perplexity") as shown:
        for window in windows:
            target = window[given:].cpu()
            of_reference = None if reference is None else _logits(reference, window, given)
            for name, model in models.items():
                logits = _logits(model, window, given) if name in names else of_reference
                assert logits is not None
                if target.min() < 0 or target.max() >= logits.shape[-1]:
                    raise ValueError(
                        f"windows: expected ids from 0 to {logits.shape[-1] - 1}, got {target.min()} to {target.max()}"
                    )
                nll[name] += torch.nn.functional.cross_entropy(logits, target, reduction="sum").item()
                right[name] += int((logits.argmax(-1) == target).sum())
                if of_reference is not None:
                    compared[name].add(logits, of_reference)
                shown.update()
    scored = windows.shape[0] * (windows.shape[1] - given)
    return {
        name: LanguageQuality(
            scored,
            _exp(nll[name] / scored),
            right[name] / scored,
            compared[name].result() if name in compared else None,
        )
        for name in models
    }


def perplexity(model: nn.Module, windows: Tensor, *, given: int = 1) -> float:
    """exp of the mean negative log likelihood (nats) of the tokens in `windows`, as `compare` says."""
    return compare({"model": model}, windows, given=given)["model"].perplexity


def _logits(model: nn.Module, window: Tensor, given: int) -> Tensor:
    """Of the scored tokens, float32 `[length - given, vocabulary]`; the last token is only a target."""
    return tensor_of(call(model, window[None, :-1]))[0, given - 1 :].float().cpu()


def _exp(mean: float) -> float:
    try:
        return math.exp(mean)
    except OverflowError:  # a broken model
        return math.inf
