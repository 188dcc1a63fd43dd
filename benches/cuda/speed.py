"""Step B: what the device can do, the crossovers, and each kernel beside its goal. Times are of graphs, weights out of cache."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from book import Book
from operands import error, floats_of, product

from rquant import cuda
from rquant._backends import cuda_outliers
from rquant._native import QMatrix
from rquant._native import cuda as native_cuda
from rquant.cuda import routes
from rquant.cuda.tune import COLD_BYTES
from rquant.cuda.tune.weights import random_activations, random_weights

Unit = tuple[str, Callable[[], dict]]
Timer = Callable[[str, Sequence[Callable[[], object]]], float]
SQUARE, WIDE = (8192, 8192), (28672, 4096)
TOLERANCE = 2e-2  # that the kernel is the right one at all: step A is where it is proved
CHANNELS = 256


def fill(book: Book, device: torch.device, small: bool) -> None:
    """Ceilings, then what they are asked for, then the table of routes."""
    from rquant.cuda.timing import GraphTimer

    timer = GraphTimer()
    book.fill(ceilings(device, timer, 1024 if small else 8192))
    book.fill([("tune", lambda: tuned(small))])
    book.fill(kernels(device, timer, (256, 512) if small else SQUARE, (512, 256) if small else WIDE))


def tuned(small: bool) -> dict:
    """`rquant.cuda.tune`, which also keeps its table for every product from now on."""
    table = cuda.tune(shapes=[(1024, 1024)], rows=(1, 8, 16, 64)) if small else cuda.tune()
    cells = [
        {**vars(cell), "microseconds": {str(m): t for m, t in cell.microseconds.items()}}
        for cell in table.cells
    ]
    return {"ok": bool(cells), "cells": cells}


def ceilings(device: torch.device, timer: Timer, size: int) -> Iterator[Unit]:
    """Bytes a second of a copy, operations a second of torch's matrix products."""

    def copy() -> dict:
        pairs = [torch.empty(2, size * size * 8, dtype=torch.uint8, device=device) for _ in range(2)]
        us = timer("copy", [lambda p=p: p[0].copy_(p[1]) for p in pairs])
        return {"us": us, "rate": 2 * size * size * 8 / us * 1e6}

    def matmul(dtype: torch.dtype) -> dict:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        us = timer("mm", [lambda: a @ b.T])
        return {"us": us, "rate": 2 * size**3 / us * 1e6}

    def int_mm() -> dict:
        a, b = (torch.randint(-127, 128, (size, size), device=device).to(torch.int8) for _ in range(2))
        us = timer("_int_mm", [lambda: torch._int_mm(a, b.T)])
        return {"us": us, "rate": 2 * size**3 / us * 1e6}

    yield "ceiling copy", copy
    for dtype in (torch.float16, torch.bfloat16):
        yield f"ceiling {str(dtype).removeprefix('torch.')}", lambda dtype=dtype: matmul(dtype)
    yield "ceiling int8", int_mm


def kernels(
    device: torch.device, timer: Timer, square: tuple[int, int], wide: tuple[int, int]
) -> Iterator[Unit]:
    """Every figure that a goal names."""
    for shape, name, bits, group, rows in (
        (square, "square", 4, 128, (1, 8, 16, 32, 64, 2048)),
        (square, "square", 8, -1, (1, 16, 64)),
        (square, "square", 2, 64, (1, 16)),
        (wide, "wide", 4, 128, (1,)),
        (wide, "wide", 8, -1, (1,)),
    ):
        for m in rows:
            yield f"W{bits}A16 {name} m={m}", lambda a=(shape, bits, group, m): weight_only(device, timer, *a)
    for bits in (8, 4, 2):
        for m in (1, 16, 64, 512, 2048):
            yield f"W{bits}A8 square m={m}", lambda a=(square, bits, m): integer(device, timer, *a)
        yield f"dequantize int{bits} square", lambda a=(square, bits): dequantize(device, timer, *a)
        yield f"unpack int{bits} square", lambda a=(square, bits): unpack(device, timer, *a)
    for m in (1, 4096):
        yield f"rows m={m}", lambda m=m: rows_quantized(device, timer, m, 4096)
    yield "LLM.int8 square m=2048", lambda: llm_int8(device, timer, square, 2048)
    for m in (1, 16, 64, 2048):
        yield f"fp16 square m={m}", lambda m=m: half(device, timer, square, m)


def _checked(outputs: Iterable[torch.Tensor], x: torch.Tensor, q: QMatrix) -> float:
    """Relative error of the first output's first channels. Raises ValueError where it is wrong: then nothing is timed."""
    part = q.map(lambda t: t[:CHANNELS].contiguous())
    got = next(iter(outputs))[:, :CHANNELS]
    found = error(got, product(x, floats_of(part), None))
    if not found <= TOLERANCE:
        raise ValueError(f"wrong answer: relative error {found:.3g}")
    return found


def _bytes(q: QMatrix) -> int:
    return sum(t.nbytes for t in q[:3] if t is not None)


def weight_only(device, timer, shape, bits, group, m) -> dict:
    n, k = shape
    weights = random_weights(n, k, bits, group, device, COLD_BYTES)
    x = random_activations(m, k, "float16", device)
    index, _ = native_cuda.place(x)
    route = cuda.table.of_device(index).route("float16", bits, group, n, k, m)
    off = _checked((routes.linear(route, x, q, None) for q in weights), x, weights[0])
    us = timer("linear", [lambda q=q: routes.linear(route, x, q, None) for q in weights])
    moved = _bytes(weights[0]) + 2 * m * (n + k)
    return {"us": us, "route": route, "error": off, "bytes": moved, "flop": 2 * m * n * k}


def integer(device, timer, shape, bits, m) -> dict:
    n, k = shape
    weights = random_weights(n, k, bits, -1 if bits == 8 else 128, device, COLD_BYTES)
    codes, scale = routes.quantize_rows(random_activations(m, k, "float16", device), None)
    x = codes * scale.double()[:, None]
    off = _checked(
        (routes.linear_int8("integer", codes, scale, q, None, torch.float16) for q in weights), x, weights[0]
    )
    us = timer(
        "linear_int8",
        [lambda q=q: routes.linear_int8("integer", codes, scale, q, None, torch.float16) for q in weights],
    )
    return {"us": us, "error": off, "bytes": _bytes(weights[0]) + m * (k + 2 * n), "flop": 2 * m * n * k}


def dequantize(device, timer, shape, bits) -> dict:
    weights = random_weights(*shape, bits, -1 if bits == 8 else 128, device, COLD_BYTES)
    us = timer("dequantize", [lambda q=q: routes.dequantize(q, torch.float16) for q in weights])
    return {"us": us, "bytes": _bytes(weights[0]) + 2 * shape[0] * shape[1], "flop": 0}


def unpack(device, timer, shape, bits) -> dict:
    weights = random_weights(*shape, bits, -1, device, COLD_BYTES)
    out = torch.empty(shape, dtype=torch.int8, device=device)
    us = timer("unpack", [lambda q=q: native_cuda.unpack_codes(q, out) for q in weights])
    return {"us": us, "bytes": weights[0].codes.nbytes + out.nbytes, "flop": 0}


def rows_quantized(device, timer, m, k) -> dict:
    copies = [random_activations(m, k, "float16", device) for _ in range(2 if m > 1 else 16)]
    us = timer("rows", [lambda x=x: routes.quantize_rows(x, None) for x in copies])
    return {"us": us, "bytes": m * (3 * k + 4), "flop": 0}


def llm_int8(device, timer, shape, m) -> dict:
    """With one column in a hundred fixed as an outlier; rows quantized in it, as in what it is set beside."""
    weights = random_weights(*shape, 8, -1, device, COLD_BYTES)
    columns = list(range(0, shape[1], 100))
    kept = cuda_outliers.weight_of_columns(weights[0], torch.tensor(columns, device=device))
    x = random_activations(m, shape[1], "float16", device)

    def run(q: QMatrix) -> torch.Tensor:
        return cuda_outliers.linear_outliers_canonical(x, q, None, None, columns, kept)

    off = _checked([run(weights[0])], x, weights[0])
    us = timer("outliers", [lambda q=q: run(q) for q in weights])
    plain = timer(
        "W8A8",
        [
            lambda q=q: routes.linear_int8("integer", *routes.quantize_rows(x, None), q, None, x.dtype)
            for q in weights
        ],
    )
    return {"us": us, "plain_us": plain, "error": off, "bytes": 0, "flop": 2 * m * shape[0] * shape[1]}


def half(device, timer, shape, m) -> dict:
    weights = [torch.randn(shape, device=device, dtype=torch.float16) for _ in range(2)]
    x = random_activations(m, shape[1], "float16", device)
    us = timer("mm", [lambda w=w: x @ w.T for w in weights])
    return {"us": us, "bytes": weights[0].nbytes + 2 * m * sum(shape), "flop": 2 * m * shape[0] * shape[1]}
