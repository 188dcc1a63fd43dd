"""Weights and activations of every form that kernels take, and what they must give, in float64."""

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from rquant import _native, _rquant
from rquant._backends import reference
from rquant._native import QMatrix


class Form(NamedTuple):
    """What a weight is stored as: kind of its codes, group size, and zero points "none", "integer" or "float"."""

    kind: int
    group_size: int
    zero: str

    def __str__(self) -> str:
        names = {43: "e4m3", 52: "e5m2"}
        group = "row" if self.group_size == -1 else f"g{self.group_size}"
        return f"{names.get(self.kind, f'int{self.kind}')}-{group}-{self.zero}"


def forms(groups: tuple[int, ...], zeros: tuple[str, ...]) -> Iterator[Form]:
    """All combinations for products."""
    return itertools.starmap(Form, itertools.product((8, 4, 2), groups, zeros))


@lru_cache(maxsize=4)  # a sweep asks for one form and shape many times in a row
def weight(form: Form, n: int, k: int, device: torch.device, seed: int) -> QMatrix:
    """A random weight `[n, k]`, every code of the type in it."""
    generator = torch.Generator().manual_seed(seed)
    row, groups = _rquant.row_bytes(k, form.kind), 1 if form.group_size == -1 else -(-k // form.group_size)
    scale = (torch.rand(n, groups, generator=generator) + 0.5) / k**0.5
    if form.kind in (43, 52):
        scale /= 8.0 if form.kind == 43 else 64.0
        floats = torch.randn(n, k, generator=generator) * 8
        bits = floats.to(reference._FLOAT8[form.kind]).view(torch.uint8)
        codes = torch.nn.functional.pad(bits, (0, row - k))
    else:
        scale *= 2.0 ** (2 - form.kind)
        half = 1 << (form.kind - 1)
        codes = torch.randint(-half, half, (n, k), generator=generator).to(torch.int8)
        codes = _native.pack_codes(codes, form.kind)
    zero = None
    if form.zero == "integer":
        zero = torch.randint(0, 1 << form.kind, (n, groups), generator=generator).to(torch.uint8)
    elif form.zero == "float":
        zero = torch.randn(n, groups, generator=generator).half()
    scale = scale if groups == 1 else scale.half()
    q = QMatrix(codes, scale, zero, k, form.kind, form.group_size)
    return q.map(lambda t: t.to(device))


def activations(m: int, k: int, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    """Normal numbers `[m, k]`."""
    return torch.randn(m, k, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def floats_of(q: QMatrix) -> Tensor:
    """The weight in float64 `[n, k]`."""
    return reference.dequantize_canonical(q, torch.float32).double()


def product(x: Tensor, floats: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ floats.T + bias` in float64."""
    out = x.double() @ floats.T
    return out if bias is None else out + bias.double()


def error(got: Tensor, want: Tensor) -> float:
    """Relative, in the 2-norm; NaN where something was not written."""
    return ((got.double() - want).norm() / want.norm().clamp(1e-30)).item()
