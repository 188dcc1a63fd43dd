"""What bench_quantize.py times: a weight quantized by rquant, by torch's operators and by other libraries."""

import importlib
import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from peers import Kind
from peers.ours import linear_of
from peers.rounding import round_weight

import rquant
from rquant import _native

HALF = 0.51  # of a scale: float16 scales and float32 arithmetic round a little, too
Checked = dict[str, tuple[Callable, Callable]]  # what is timed, and what tells its result's error


class Scheme(NamedTuple):
    """Bits of a weight, and how many share a scale: 0 for a row."""

    bits: int
    group: int

    @classmethod
    def of(cls, name: str) -> "Scheme":
        bits, _, group = name.removeprefix("int").partition("-g")
        return cls(int(bits), int(group or 0))


def ours(weight: torch.Tensor, scheme: Scheme) -> dict[str, Callable]:
    """rquant's arms, checked."""
    arguments = weight, scheme.bits, scheme.group or -1, scheme.bits == 8
    q = _native.quantize(*arguments)
    arms = {
        "quantize": lambda: _native.quantize(*arguments),
        "pack": lambda: _native.pack(q),
        "both": lambda: _native.pack(_native.quantize(*arguments)),
    }
    settings = {"weights": f"int{scheme.bits}", "group_size": scheme.group or None}
    layer = rquant.Linear.from_float(linear_of(weight), **settings)
    (panels,) = layer.held.values()
    if not torch.equal(arms["pack"](), panels) or not torch.equal(arms["both"](), panels):
        raise AssertionError(f"{scheme}: not the panels of from_float")
    scale = q.scale.float().repeat_interleave(scheme.group or weight.shape[1], 1)[:, : weight.shape[1]]
    error = ((layer.dequantize(torch.float32) - weight.float()).abs() / scale).max().item()
    if not error <= HALF:
        raise AssertionError(f"{scheme}: {error} scales from the weight")
    return arms


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """Error of `got`, in 2-norms."""
    return ((got.float() - want.float()).norm() / want.float().norm()).item()


def of_torch(weight: torch.Tensor, scheme: Scheme) -> Checked:
    """A copy, and torch's operators."""

    def eager():
        return round_weight.__wrapped__(weight.float(), scheme.bits, scheme.group, scheme.bits == 8)

    def eager_error(codes) -> float:
        floats = (codes.codes.float() - codes.zero.unsqueeze(-1)) * codes.scale.unsqueeze(-1)
        return relative(floats.view_as(weight), weight)

    def per_channel():
        scale = weight.abs().amax(1).float() / 127
        zero = torch.zeros_like(scale, dtype=torch.int64)
        return torch.quantize_per_channel(weight.float(), scale, zero, 0, torch.qint8)

    there = torch.empty_like(weight)
    arms = {
        "copy": (lambda: there.copy_(weight), lambda y: relative(y, weight)),
        "clone": (weight.clone, lambda y: relative(y, weight)),
        "eager": (eager, eager_error),
    }
    if scheme == (8, 0):
        arms["per_channel"] = per_channel, lambda y: relative(y.dequantize(), weight)
    return arms


def of_peers(weight: torch.Tensor, scheme: Scheme, threads: int) -> Checked:
    """Other libraries that have this scheme: each packs one layer, whose output tells the error."""
    x = torch.randn(16, weight.shape[1]).to(weight.dtype)

    def error(layers) -> float:
        return relative(layers[0].bind(x)(), x @ weight.T)

    found = {}
    for family, integer in itertools.product(("torchao", "quanto", "bnb"), (False, True)):
        for arm in importlib.import_module(f"peers.{family}").arms(Kind(scheme.bits, integer, threads)):
            if arm.group == scheme.group:
                found.setdefault(family, (lambda arm=arm: arm.pack(weight, 1), error))
    return found
