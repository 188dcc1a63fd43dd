"""Which columns of a model's activations are outliers, found on sample data once and for all."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .nn import Linear


@contextmanager
def record_outliers(model: nn.Module) -> Iterator[None]:
    """Run samples inside; at the end each layer's outliers are the columns that reached its threshold.

        rquant.quantize(model, activations="int8", outliers=6.0)
        with rquant.record_outliers(model):
            model(samples)
        rquant.freeze(model)

    Fixed columns need not be looked for in each call, give a row the same output whatever rows come with it, and, fixed
    before `freeze`, keep the float weights they had. A layer that is not called inside keeps its threshold. After an
    exception nothing is fixed. Raises ValueError for a model without a layer that has a threshold.
    """
    layers = [m for m in model.modules() if isinstance(m, Linear) and isinstance(m.outliers, float)]
    if not layers:
        raise ValueError("model: expected layers with a threshold, quantized with outliers=6.0, got none")
    most: dict[Linear, Tensor] = {}

    def look(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows = args[0].detach().reshape(-1, args[0].shape[-1]).float().abs()
        rows = rows[rows.isfinite().all(-1)]
        largest = torch.cat([rows, most.get(layer, rows.new_zeros(rows.shape[-1]))[None]]).amax(0)  # type: ignore[call-overload]
        most[layer] = largest  # type: ignore[index]

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for layer, largest in most.items():
        layer.fix_outliers((largest >= layer.outliers).nonzero().flatten().tolist())
