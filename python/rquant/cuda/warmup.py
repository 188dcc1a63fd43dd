"""Before a graph is captured: nothing can be compiled or loaded while a stream records."""

from typing import Any

from .driver import ready
from .table import ESTIMATED, MOST_SMALL, ROUTES, of_device

_TILES = (MOST_SMALL, 16)
"""Rows beyond which a product is another kernel's, whatever the table says."""


def warmup(model: Any) -> int:
    """Compile and load every kernel that the frozen quantized layers of `model` need, for any number of rows.

    Each kind of layer (sizes, bits, group size, compute dtype, arithmetic) is run once for each kernel, on zeros. Returns how many
    products were made. Layers that are not on a CUDA device are left alone, so it may be called anywhere. Call it before
    `torch.cuda.graph`; what the rest of the model needs, its own forward on sample input loads.
    """
    import torch

    done: set[object] = set()
    count = 0
    with torch.no_grad():
        for layer in filter(_runs_kernels, model.modules()):
            like, kind = layer.compute_like, _kind(layer)
            if kind in done:
                continue
            done.add(kind)
            if hasattr(layer, "rows"):  # an embedding
                layer.rows(torch.zeros(1, dtype=torch.int64, device=like.device))
                count += 1
                continue
            for rows in _rows(layer):
                layer(
                    like.new_zeros(rows, layer.in_features)
                ).float()  # a calibrated one computes when it is read
                count += 1
    return count


def _runs_kernels(layer: Any) -> bool:
    """Whether it is a frozen linear layer or embedding of ours, on a device with kernels."""
    like = getattr(layer, "compute_like", None)
    if like is None or not layer.frozen:
        return False
    known = hasattr(layer, "in_features") or hasattr(layer, "rows")
    return known and like.device.type not in ("cpu", "meta") and not layer.scheme.qtype.is_cast and ready()


def _kind(layer: Any) -> object:
    q = layer.canonical()
    return (
        type(layer), q.codes.device, q.codes.shape[0], q.cols, q.kind, q.group_size, q.scale.dtype, q.zero_point is None,
        layer.compute_like.dtype, getattr(layer, "activations", None), getattr(layer, "calibrated", None),
        str(getattr(layer, "outliers", None)),
    )  # fmt: skip


def _rows(layer: Any) -> list[int]:
    """One number of rows for each kernel or route that this layer may take."""
    from .._native import cuda as native

    q = layer.canonical()
    arithmetic = (
        "int8" if layer.activations is not None else str(layer.compute_like.dtype).removeprefix("torch.")
    )
    steps = ESTIMATED["float16"]
    if arithmetic in ROUTES:
        found = of_device(native.place(q.codes)[0])
        steps = found.crossovers(arithmetic, q.kind, q.group_size, q.codes.shape[0], q.cols)
    ends = {0, *_TILES, *(most for most, _ in steps if most is not None)}
    return sorted(end + 1 for end in ends)
