"""Which way of quantizing fits a model: dynamic, static, trained (QAT) or its weights alone."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .nn.linear import is_conv1d
from .nn.registry import registration_of, why_not
from .report import Report, rows_of
from .rules import Choice
from .selection import select

SMALL = 100_000
"""Weights of layers below which a model has little to spare, and rounding is better trained for."""

_CALIBRATE = "with rquant.Calibration():\n    for batch in samples:\n        model(batch)"
_TRAIN = "rquant.qat.prepare(model)\ntrain(model)  # some epochs more, at a tenth of the learning rate"
_MODES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "dynamic": ({"weights": "int8", "activations": "int8"}, []),
    "static": ({"weights": "int8", "activations": "int8"}, [_CALIBRATE]),
    "qat": ({"weights": "int8", "activations": "int8"}, [_CALIBRATE, _TRAIN]),
    "weight-only": ({"weights": "int4"}, []),
}
"""Arguments of `rquant.quantize`, and what is done between it and `rquant.freeze`."""


@dataclass(frozen=True)
class Recommendation:
    """What to do with a model, and why. `str()` tells it, with the calls to make and a table of the layers."""

    mode: str
    """"dynamic", "static", "qat", "weight-only", or "float" if there is nothing to quantize."""
    why: str
    arguments: dict[str, Any]
    """For `rquant.quantize`."""
    report: Report
    """What `rquant.quantize` would do to each layer, with the bytes before and after."""

    steps: str
    """The calls to make, as Python: `sample` is one input of the model, `samples` some hundred."""

    @property
    def bytes_before(self) -> int:
        """Bytes of all parameters."""
        return self.report.bytes_before

    @property
    def bytes_after(self) -> int:
        """Bytes of them once quantized and frozen."""
        return self.report.bytes_after

    def __str__(self) -> str:
        parts = [f"{self.mode}: {self.why}", *([self.steps] if self.steps else []), str(self.report)]
        return "\n\n".join(parts)


def recommend(model: nn.Module, *args: Any, **kwargs: Any) -> Recommendation:
    """A way of quantizing for `model`, which stays as it is; `args` and `kwargs` are a sample input, with which it is run once.

    Transformers and recurrent nets: dynamic, since their cost is reading weights, and the range of what goes through them
    is best taken from each token. Convolutional nets: static, since each of their weights is used at many places and their
    activations are what memory must carry. Small ones: QAT. Models that generate tokens: weights alone, since at batch 1
    each weight is read for one row. (After PyTorch's guide, <https://pytorch.org/blog/quantization-in-practice/>.)

    Kinds of layers are weighed by the multiplications that the sample makes them do; without a sample, by their number. A
    rule of thumb: only an evaluation says what it costs (`rquant.evaluate`). What cannot be quantized does not count.
    """
    kinds = {m: kind for m in model.modules() if (kind := _kind(m)) is not None}
    work = _multiplications(model, kinds, args, kwargs) if args or kwargs else Counter(kinds.values())
    mode, why = _choose(model, kinds, work, "multiplications" if args or kwargs else "layers")
    arguments, between = _MODES.get(mode, ({}, []))
    tree, targets, kept = select(model, None, None, [], Choice.resolve(**(arguments or {"weights": "int8"})))
    report = Report(rows_of(tree, targets, [False] * len(targets), kept))
    said = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    steps = [f"rquant.quantize(model, {said})", *between, "rquant.freeze(model)"] if arguments else []
    if arguments and any(isinstance(m, _BatchNorm) for m in model.modules()):
        trained = mode == "qat"  # then BatchNorm goes on learning, inside the quantized layer
        steps.insert(int(trained), f"rquant.{'qat.' if trained else ''}fold_bn(model, sample)")
    return Recommendation(mode, why, dict(arguments), report, "\n".join(steps))


def _kind(module: nn.Module) -> str | None:
    """Of a layer that can be quantized."""
    if registration_of(module) is None:
        return None
    if isinstance(module, _ConvNd):
        return "convolutions"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "recurrent layers"
    linear = isinstance(module, nn.Linear | nn.MultiheadAttention) or is_conv1d(module)
    return "linear layers" if linear else None


def _multiplications(
    model: nn.Module, kinds: dict[nn.Module, str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Counter[str]:
    """Of each kind: a layer multiplies all its weights once for each row or place."""
    found: Counter[str] = Counter()

    def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = (args[0] if args else next(iter(kwargs.values()))).data  # of a PackedSequence, too
        if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd):
            places = output.numel() // module.out_channels
        else:
            channels = module.in_channels if isinstance(module, _ConvNd) else x.shape[-1]
            places = x.numel() // channels
        weights = sum(p.numel() for p in module._parameters.values() if p is not None and p.dim() > 1)
        found[kinds[module]] += places * weights

    handles = [module.register_forward_hook(count, with_kwargs=True) for module in kinds]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return found


def _choose(model: nn.Module, kinds: dict[nn.Module, str], work: Counter[str], unit: str) -> tuple[str, str]:
    weights = sum(p.numel() for m in kinds for p in m._parameters.values() if p is not None and p.dim() > 1)
    if not kinds:
        layers = [
            m for m in model.modules() if isinstance(m, _ConvNd | nn.RNNBase | nn.RNNCellBase | nn.Linear)
        ]
        if not layers:
            return "float", "no linear, convolutional or recurrent layers"
        return (
            "float",
            f"none of its layers can be quantized, {type(layers[0]).__name__}: {why_not(layers[0])}",
        )
    if _generates(model):
        return (
            "weight-only",
            "it generates token by token: at batch 1 each step reads every weight for a single row",
        )
    kind, most = work.most_common(1)[0] if work else (next(iter(kinds.values())), 0)
    share = f"{kind} do {most / max(work.total(), 1):.0%} of the {unit}"
    if unit == "layers":
        share = f"{most} of {work.total()} layers are {kind}"
    if weights < SMALL:
        return "qat", f"{share}, and {weights:,} weights are few: train for the rounding"
    if kind != "convolutions":
        return "dynamic", f"{share}: reading weights is the cost, and each token's range is its own"
    deep = sum(isinstance(m, _ConvNd) and m.groups == m.in_channels > 1 for m in kinds)
    careful = f"; if {deep} depthwise layers cost accuracy, go on to QAT" if deep else ""
    return (
        "static",
        f"{share}: each weight serves many places, and int8 activations pass between layers{careful}",
    )


def _generates(model: nn.Module) -> bool:
    """A transformers model that says so; or one that ends in as many logits as it embeds tokens."""
    if callable(can := getattr(model, "can_generate", None)):
        return bool(can()) and not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if hasattr(model, "config"):
        return False
    tokens = {m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)} - set(range(256))
    return any(isinstance(m, nn.Linear) and m.out_features in tokens for m in model.modules())
