"""Step D: one token after another through a model of Llama's shape, 8B with random weights; tokens a second.

A token reads every weight once, so this is where small weights pay. In a graph nothing but the kernels is left; eager shows
what their launches cost.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from speed import Unit
from torch import Tensor, nn
from torch.nn import functional

from rquant import Linear
from rquant.cuda import warmup
from rquant.cuda.tune.weights import random_weight


@dataclass(frozen=True)
class Shape:
    """Llama-3's by default."""

    width: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    hidden: int = 14336
    vocabulary: int = 128256
    tokens: int = 512  # in the cache

    @property
    def head(self) -> int:
        return self.width // self.heads


SMALL = Shape(64, 2, 4, 2, 128, 96, 16)
WEIGHTS = {
    "bfloat16": (None, None, None),
    "int8": ("int8", -1, None),
    "int4 g128": ("int4", 128, None),
    "int8 a8": ("int8", -1, "int8"),
    "int4 g128 a8": ("int4", 128, "int8"),
}
Weights = tuple[str | None, int | None, str | None]


def linear(n: int, k: int, weights: Weights, device: torch.device) -> nn.Module:
    """A layer without bias, its weight random; of few values of the type, so that both models below can be one."""
    name, group_size, activations = weights
    if name is None:
        return nn.Linear(k, n, bias=False, device=device, dtype=torch.bfloat16).requires_grad_(False)
    group_size = group_size if group_size == -1 or k % group_size == 0 else 32
    layer = Linear(
        k,
        n,
        bias=False,
        device="meta",
        weights=name,
        activations=activations,
        group_size=group_size,
        symmetric=True,
    )
    q = random_weight(n, k, layer.scheme.bits, group_size, device)
    held = {"weight_packed": q.codes, "weight_scale": q.scale}
    if device.type == "cpu":  # where layers hold another form
        from rquant.nn import storage

        held = storage.hold(q, device)
    layer.hold(held, like=torch.empty(0, dtype=torch.bfloat16, device=device))
    return layer


def normed(x: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:])


class Block(nn.Module):
    """Attention over a cache of fixed length, then the gated layers."""

    def __init__(self, shape: Shape, weights: Weights, device: torch.device) -> None:
        super().__init__()
        self.shape, kv = shape, shape.kv_heads * shape.head
        self.qkv = linear(shape.width + 2 * kv, shape.width, weights, device)
        self.out = linear(shape.width, shape.width, weights, device)
        self.up = linear(2 * shape.hidden, shape.width, weights, device)
        self.down = linear(shape.width, shape.hidden, weights, device)
        cache = torch.zeros(
            2, 1, shape.kv_heads, shape.tokens, shape.head, device=device, dtype=torch.bfloat16
        )
        self.register_buffer("cache", cache)

    def forward(self, x: Tensor, position: Tensor, seen: Tensor) -> Tensor:
        s = self.shape
        q, k, v = self.qkv(normed(x)).split([s.width, s.kv_heads * s.head, s.kv_heads * s.head], -1)
        for cache, new in zip(self.cache, (k, v), strict=True):
            cache.index_copy_(2, position, new.view(1, 1, s.kv_heads, s.head).transpose(1, 2))
        q = q.view(1, 1, s.heads, s.head).transpose(1, 2)
        read = functional.scaled_dot_product_attention(q, *self.cache, attn_mask=seen, enable_gqa=True)
        x = x + self.out(read.transpose(1, 2).reshape(1, s.width))
        gate, value = self.up(normed(x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * value)


class Model(nn.Module):
    """Token to logits, and the position moved on: all it needs is in its own memory, as a graph wants it."""

    def __init__(self, shape: Shape, weights: Weights, device: torch.device) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shape = shape
        self.embedding = torch.randn(shape.vocabulary, shape.width, device=device, dtype=torch.bfloat16)
        self.blocks = nn.ModuleList(Block(shape, weights, device) for _ in range(shape.layers))
        self.head = linear(shape.vocabulary, shape.width, weights, device)
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.places = torch.arange(shape.tokens, device=device)

    def forward(self) -> Tensor:
        x, seen = self.embedding[self.token], (self.places <= self.position)[None, None, None]
        for block in self.blocks:
            x = block(x, self.position, seen)
        logits = self.head(normed(x))
        self.token.copy_(logits.argmax(-1))
        self.position.copy_((self.position + 1) % self.shape.tokens)
        return logits


def nbytes(model: nn.Module) -> int:
    """Of what a token reads: the layers, not the embedding."""
    layers = (m for m in model.modules() if isinstance(m, nn.Linear))
    return sum(t.nbytes for m in layers for t in (m.held.values() if isinstance(m, Linear) else [m.weight]))


def as_floats(model: nn.Module) -> nn.Module:
    """In place: the same weights, dequantized, in torch's own layers."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear):
                plain = nn.Linear(child.in_features, child.out_features, bias=False, device="meta")
                plain.weight = nn.Parameter(child.dequantize(torch.bfloat16), requires_grad=False)
                setattr(module, name, plain)
    return model


def check(weights: Weights, shape: Shape, device: torch.device) -> float:
    """Relative distance of the logits of two layers to those of the same weights in bfloat16, three tokens on."""
    few = Shape(**{**vars(shape), "layers": 2, "vocabulary": 256})
    logits = []
    for floats in (False, True):
        model = Model(few, weights, device)
        model = as_floats(model) if floats else model
        for _ in range(3):
            model.token.fill_(5)
            out = model()
        logits.append(out.double())
    return ((logits[0] - logits[1]).norm() / logits[1].norm()).item()


def measured(weights: Weights, shape: Shape, device: torch.device, seconds: float) -> dict:
    """Tokens a second, checked first; eager, and in a graph where there are graphs."""
    found: dict = {"ok": True}
    with torch.no_grad():
        if weights[0] is not None:
            found["distance"] = check(weights, shape, device)
            if not found["distance"] <= (0.1 if weights[2] else 0.05):
                return {
                    "ok": False,
                    "error": f"logits are {found['distance']:.3f} away from those of bfloat16",
                }
        model = Model(shape, weights, device)
        found["GiB"] = nbytes(model) / 2**30
        warmup(model)
        found["eager"] = rate(model, device, seconds)
        if device.type == "cuda":
            from rquant.cuda.timing import capture

            found["graph"] = rate(capture([model]).replay, device, seconds)
    return found


def rate(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Calls a second."""

    def settle() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        call()
    settle()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(8):
            call()
        settle()
        count += 8
    return count / (time.perf_counter() - start)


def units(device: torch.device, small: bool) -> Iterator[Unit]:
    """One for each kind of weights."""
    shape, seconds = (SMALL, 0.05) if small else (Shape(), 5.0)
    for name, weights in WEIGHTS.items():
        yield name, lambda w=weights: measured(w, shape, device, seconds)
