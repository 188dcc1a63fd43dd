"""How near one model's outputs are to another's: distributions over classes or tokens, and vectors."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch, call, evaluating, tensor_of

_ROWS = 128  # logits in float64 are some megabytes a row-block, not gigabytes


@dataclass(frozen=True, slots=True)
class Agreement:
    """Over `count` distributions: KL(reference || model) in nats, its mean, 99th percentile and greatest; and the share in
    which both hold the same class likeliest."""

    count: int
    kl: float
    kl_p99: float
    kl_max: float
    top1: float


@dataclass(frozen=True, slots=True)
class Cosine:
    """Over `count` vectors: mean and least cosine to the reference's."""

    count: int
    mean: float
    least: float


class LogitComparison:
    """Adds up an `Agreement`, a piece at a time."""

    def __init__(self) -> None:
        self._kl: list[Tensor] = []
        self._same = 0

    def add(self, logits: Tensor, reference: Tensor) -> None:
        """Logits of both, `[..., classes]`. Raises ValueError for different shapes."""
        if logits.shape != reference.shape:
            raise ValueError(f"logits: expected shape {tuple(reference.shape)}, got {tuple(logits.shape)}")
        classes = logits.shape[-1]
        blocks = zip(
            logits.reshape(-1, classes).split(_ROWS), reference.reshape(-1, classes).split(_ROWS), strict=True
        )
        for of_model, of_reference in blocks:
            log_p = of_reference.cpu().double().log_softmax(-1)
            log_q = of_model.cpu().double().log_softmax(-1)
            p = log_p.exp()
            # a class that is ruled out (-inf) by the reference adds nothing
            self._kl.append(torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1))
            self._same += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())

    def result(self) -> Agreement:
        """Raises ValueError if nothing was added."""
        kl = torch.cat(self._kl) if self._kl else torch.empty(0)
        if not kl.numel():
            raise ValueError("batches: expected at least one, got none")
        ordered = kl.sort().values  # NaN last: it is the greatest, and seen
        p99 = ordered[math.ceil(0.99 * len(kl)) - 1]
        return Agreement(len(kl), kl.mean().item(), p99.item(), ordered[-1].item(), self._same / len(kl))


def agreement(model: nn.Module, reference: nn.Module, batches: Iterable[Batch]) -> Agreement:
    """KL divergence and top-1 agreement of two models whose outputs are logits `[..., classes]`.

    A batch is what both models take: a tensor, a tuple of arguments, a mapping of keyword arguments. Logits are an output's
    `logits`, the output itself, or the first of a tuple. Kullback and Leibler, "On Information and Sufficiency", 1951.
    """
    compared = LogitComparison()
    with evaluating(model, reference):
        for batch in batches:
            compared.add(tensor_of(call(model, batch)), tensor_of(call(reference, batch)))
    return compared.result()


def cosine(
    model: nn.Module,
    reference: nn.Module,
    batches: Iterable[Batch],
    vectors: Callable[[Any, Batch], Tensor] | None = None,
) -> Cosine:
    """Cosines between two models' vectors, `[..., size]`.

    `vectors(output, batch)` makes them; None: as `agreement` takes logits. `mean_pooled` is for sentence encoders.
    """
    found: list[Tensor] = []
    with evaluating(model, reference):
        for batch in batches:
            pair = []
            for m in (model, reference):
                output = call(m, batch)
                v = tensor_of(output) if vectors is None else vectors(output, batch)
                pair.append(v.cpu().double().reshape(-1, v.shape[-1]))
            found.append(torch.nn.functional.cosine_similarity(*pair, dim=-1))
    cosines = torch.cat(found) if found else torch.empty(0)
    if not cosines.numel():
        raise ValueError("batches: expected at least one, got none")
    return Cosine(len(cosines), cosines.mean().item(), cosines.min().item())


def mean_pooled(output: Any, batch: Batch) -> Tensor:
    """A vector `[batch, size]` a sentence: the mean over tokens whose `attention_mask` `[batch, tokens]` is 1."""
    hidden = tensor_of(output)
    mask = batch["attention_mask"].to(hidden).unsqueeze(-1)
    return (hidden * mask).sum(1) / mask.sum(1)
