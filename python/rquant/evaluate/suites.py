"""Several schemes of one model side by side: language models, encoders, and a benchmark; each gives an `Outcome`."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..nn import PackedWeight
from .batches import Batch
from .language_model import LanguageQuality, compare
from .layers import Sensitivity, sensitivity
from .outcome import Column, Outcome
from .outputs import cosine, mean_pooled
from .recipe import resident_bytes
from .speed import speeds

_BYTES = Column("bytes", "memory MB", "{:.1f}", unit=1e6, bars=True)
_PERPLEXITY = (
    Column("perplexity", "perplexity", "{:,.3f}", bars=True, log=True),
    Column("change", "change", "{:+.2%}"),
)
_AGREEMENT = (
    Column("accuracy", "accuracy", "{:.2%}"),
    Column("kl", "KL, nats", "{:.5f}", bars=True),
    Column("kl_p99", "99 %", "{:.4f}"),
    Column("top1", "same top 1", "{:.2%}", bars=True),
)
Rows = dict[str, dict[str, float | None]]


def language(
    models: Mapping[str, nn.Module],
    windows: Tensor,
    reference: str | None = None,
    *,
    model_name: str = "",
    given: int = 1,
    layers: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> Outcome:
    """Perplexity in `windows`, int64 `[count, length]`, of each model; and against `models[reference]` KL, top-1 agreement and,
    with `layers`, the SQNR of each layer on the first window.

    `given` as in `compare`; `settings` are added to the outcome's own.
    """
    exact = None if reference is None else models[reference]
    rows = _qualities(models, compare(models, windows, exact, given=given), reference)
    found = _layers(models, reference, [windows[:1]]) if layers else {}
    told = {"windows": windows.shape[0], "window": windows.shape[1], "given": given, "reference": reference}
    columns = (_BYTES, *_PERPLEXITY, *_AGREEMENT)
    return Outcome("language", model_name, {**told, **(settings or {})}, _present(columns, rows), rows, found)


def encoder(
    models: Mapping[str, nn.Module],
    batches: Sequence[Batch],
    reference: str,
    *,
    model_name: str = "",
    layers: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> Outcome:
    """Cosines of each model's sentence vectors to `models[reference]`'s; a batch has `input_ids` and `attention_mask`."""
    rows: Rows = {}
    for name, model in models.items():
        near = cosine(model, models[reference], batches, mean_pooled)
        rows[name] = {"bytes": resident_bytes(model), "cosine": near.mean, "least": near.least}
    columns = (
        _BYTES,
        Column("cosine", "mean cosine", "{:.5f}", bars=True),
        Column("least", "least", "{:.5f}"),
    )
    found = _layers(models, reference, batches[:1]) if layers else {}
    told = {"batches": len(batches), "reference": reference, **(settings or {})}
    return Outcome("encoder", model_name, told, columns, rows, found)


def bench(
    models: Mapping[str, nn.Module],
    windows: Tensor,
    prompt: Tensor,
    generate: int,
    *,
    rounds: int = 5,
    model_name: str = "",
    settings: Mapping[str, Any] | None = None,
) -> Outcome:
    """Perplexity in `windows`, and milliseconds a token reading `prompt`, int64 `[1, tokens]`, and writing `generate` more.

    Changes and speeds are relative to the first model. Models take turns, see `speeds`.
    """
    first = next(iter(models))
    taken = speeds(models, prompt, generate, rounds=rounds)
    rows = _qualities(models, compare(models, windows), first)
    for name, speed in taken.items():
        rows[name]["prefill_ms_per_token"] = speed.prefill_ms / prompt.shape[1]
        rows[name]["ms_per_token"] = speed.ms_per_token
        rows[name]["prefill_speed"] = taken[first].prefill_ms / speed.prefill_ms
        rows[name]["decode_speed"] = taken[first].ms_per_token / speed.ms_per_token
    columns = (
        _BYTES,
        *_PERPLEXITY,
        Column("prefill_ms_per_token", "prefill ms/token", "{:.3f}", bars=True),
        Column("prefill_speed", "speed", "{:.2f}x"),
        Column("ms_per_token", "decode ms/token", "{:.2f}", bars=True),
        Column("decode_speed", "speed", "{:.2f}x"),
    )
    told = {
        "windows": windows.shape[0],
        "window": windows.shape[1],
        "prompt": prompt.shape[1],
        "generate": generate,
        "rounds": rounds,
        "reference": first,
    }
    return Outcome("bench", model_name, {**told, **(settings or {})}, columns, rows, {})


def _qualities(
    models: Mapping[str, nn.Module], found: Mapping[str, LanguageQuality], reference: str | None
) -> Rows:
    rows: Rows = {}
    for name, q in found.items():
        rows[name] = {
            "bytes": resident_bytes(models[name]),
            "perplexity": q.perplexity,
            "accuracy": q.accuracy,
        }
        if reference is not None:
            rows[name]["change"] = q.perplexity / found[reference].perplexity - 1
        if q.agreement is not None:
            a = q.agreement
            rows[name] |= {"kl": a.kl, "kl_p99": a.kl_p99, "kl_max": a.kl_max, "top1": a.top1}
    return rows


def _layers(
    models: Mapping[str, nn.Module], reference: str | None, batches: Sequence[Batch]
) -> dict[str, Sensitivity]:
    if reference is None:
        return {}
    return {
        name: sensitivity(model, models[reference], batches)
        for name, model in models.items()
        if name != reference and any(isinstance(m, PackedWeight) for m in model.modules())
    }


def _present(columns: tuple[Column, ...], rows: Rows) -> tuple[Column, ...]:
    """Those that some row has a figure for."""
    return tuple(c for c in columns if any(c.key in row for row in rows.values()))
