"""Fake quantization of a whole model: every parameter becomes what its integers stand for, and stays float.

For looking at what rounding does, to weights and to what a model says; nothing gets smaller. Unlike `quantize` it takes
biases, norms and embeddings too.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from ._native import NotFinite
from .progress import each
from .qtypes import QType
from .scheme import GroupSize, Scheme
from .tensor import absmax_quantize, quantize_tensor, zeropoint_quantize

Model = TypeVar("Model", bound=nn.Module)
_TEXTBOOK = {"absmax": absmax_quantize, "zeropoint": zeropoint_quantize}


def simulate_(
    model: Model, scheme: QType | str, *, group_size: GroupSize = None, symmetric: bool | None = None
) -> Model:
    """Replace the values of all parameters, in place, by their dequantized ones; returns the model.

    `scheme`: "absmax" or "zeropoint", int8 with one scale a tensor (`absmax_quantize`, `zeropoint_quantize`); or a type of
    `quantize_tensor` ("int8", "int4", "int2"), with `group_size` and `symmetric`, along rows of the first dimension (a
    vector is one row). Tied parameters are rounded once and stay tied. Raises ValueError, before anything changes, for NaN or
    infinity (named, with its index) and for an unknown scheme.
    """
    textbook = _TEXTBOOK.get(scheme) if isinstance(scheme, str) else None
    if textbook is None:
        resolved = Scheme.resolve(scheme, group_size, symmetric)
    elif group_size is not None or symmetric is not None:
        raise ValueError(
            f"group_size, symmetric: expected None with {scheme!r}, got {group_size}, {symmetric}"
        )
    parameters = {name: p for name, p in model.named_parameters() if p.numel()}
    for name, p in parameters.items():
        if not (finite := p.isfinite()).all():
            raise NotFinite(int((~finite).reshape(-1).nonzero()[0])).named(name, p.shape)
    with torch.no_grad():
        for p in each(list(parameters.values()), "rounding"):
            p.copy_(_rounded(p, resolved) if textbook is None else textbook(p)[1])
    return model


def _rounded(x: Tensor, scheme: Scheme) -> Tensor:
    rows = x.float().reshape(1 if x.dim() < 2 else x.shape[0], -1)
    q = quantize_tensor(rows, scheme.qtype, scheme.symmetric, axis=0, group_size=scheme.group_size)
    return q.dequantize().reshape(x.shape)
