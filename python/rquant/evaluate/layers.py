"""Which layers suffer most: signal-to-quantization-noise ratio (SQNR) of each layer's weight and output."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import PackedWeight
from ..nn.linear import is_conv1d
from ..table import text_table
from .batches import Batch, call, evaluating, tensor_of


@dataclass(frozen=True, slots=True)
class LayerError:
    """One quantized layer. SQNR in decibels, 10 log10(sum x² / sum (x - x̂)²): 6 more for each bit; infinite if nothing is lost.

    `weight_sqnr` of its weight; `output_sqnr` of what it makes of the inputs that the float layer gets, None without inputs
    (or if they never reach it).
    """

    name: str
    scheme: str
    weight_sqnr: float
    output_sqnr: float | None


@dataclass(frozen=True)
class Sensitivity:
    """`str()` is a table, the worst layer first; `rows` are in the model's order.

    `unmatched` are names of quantized layers that the float model keeps inside another module's tensors: a mixture's
    experts, an attention's projections.
    """

    rows: list[LayerError]
    unmatched: list[str] = field(default_factory=list)

    @property
    def worst(self) -> list[LayerError]:
        """By output where there is one, else by weight; the lowest SQNR first."""
        return sorted(self.rows, key=lambda r: r.weight_sqnr if r.output_sqnr is None else r.output_sqnr)

    def table(self, most: int | None = None) -> str:
        """The `most` worst rows, None for all."""
        rows = [
            [r.name, r.scheme, decibels(r.weight_sqnr), decibels(r.output_sqnr)] for r in self.worst[:most]
        ]
        return text_table(["layer", "scheme", "weight SQNR dB", "output SQNR dB"], rows, 2)

    def to_dict(self) -> list[dict[str, Any]]:
        """Rows in JSON types: what is infinite, or not a number, is None."""
        return [
            {
                key: None if isinstance(v, float) and not math.isfinite(v) else v
                for key, v in asdict(row).items()
            }
            for row in self.rows
        ]

    def __str__(self) -> str:
        return self.table()


def decibels(value: float | None) -> str:
    """For a table."""
    return "" if value is None else "exact" if value == math.inf else f"{value:.1f}"


@dataclass
class _Energy:
    """Sums of squares, float64."""

    signal: float = 0.0
    noise: float = 0.0
    seen: bool = field(default=False)

    def add(self, exact: Tensor, rounded: Tensor) -> None:
        exact = exact.double()
        self.signal += exact.square().sum().item()
        self.noise += (exact - rounded.double()).square().sum().item()
        self.seen = True

    @property
    def sqnr(self) -> float:
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


def sensitivity(model: nn.Module, reference: nn.Module, batches: Iterable[Batch] = ()) -> Sensitivity:
    """SQNR of every quantized layer of `model` against the float layer of the same name in `reference`.

    With `batches` (as `agreement` takes them) the reference runs, and each quantized layer is given what the float one gets,
    so that a layer answers for its own error and not for those before it. Nothing is stored but sums.
    Raises ValueError where nothing is quantized, no layer has its like in the reference, or the reference's is not float.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, PackedWeight)}
    if not layers:
        raise ValueError("model: expected at least one quantized layer, got none")
    modules = dict(reference.named_modules(remove_duplicate=False))
    unmatched = [name for name in layers if name not in modules]
    if len(unmatched) == len(layers):
        raise ValueError(f"reference: expected layers of the model's names, got none called {unmatched[0]!r}")
    layers = {name: layer for name, layer in layers.items() if name in modules}
    floats = {name: _checked_float(name, modules[name]) for name in layers}
    outputs = {name: _Energy() for name in layers}
    weights = {name: _Energy() for name in layers}
    handles = []
    with evaluating(model, reference):
        for name, layer in layers.items():
            exact = floats[name].weight
            exact = exact.T if is_conv1d(floats[name]) else exact
            rounded = layer.dequantize(torch.float32)
            weights[name].add(exact.reshape(rounded.shape), rounded)
        try:
            for name, layer in layers.items():
                hook = _comparing(layer, outputs[name])
                handles.append(floats[name].register_forward_hook(hook, with_kwargs=True))
            for batch in batches:
                call(reference, batch)
        finally:
            for handle in handles:
                handle.remove()
    rows = [
        LayerError(
            name, str(layer.scheme), weights[name].sqnr, outputs[name].sqnr if outputs[name].seen else None
        )
        for name, layer in layers.items()
    ]
    return Sensitivity(rows, unmatched)


def _comparing(layer: nn.Module, energy: _Energy) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        energy.add(tensor_of(output), tensor_of(layer(*args, **kwargs)))

    return hook


def _checked_float(name: str, layer: Any) -> Any:
    if isinstance(layer, PackedWeight) or not isinstance(getattr(layer, "weight", None), Tensor):
        raise ValueError(f"reference: expected a float layer at {name!r}, got {type(layer).__name__}")
    return layer
