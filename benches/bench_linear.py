"""One linear layer at a time: rquant against `torch.nn.Linear` in float32, in the same run.

    python benches/bench_linear.py                                  # everything, about 3 minutes on 2 cores
    python benches/bench_linear.py --shapes 384x1536 --m 1,16 --weights int8 --threads 1
    python benches/bench_linear.py --rotate 256                     # weights from memory, not from cache

A cell is a layer (k inputs, n outputs) and a number of rows m. In a cell the arms take turns, so that what else
the machine does hits all of them; the figure is the median. An arm's answer is checked before it is timed.
"""

import argparse
import copy
import itertools
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from check import check_linear

import rquant

SHAPES = "384x1536,1536x384,576x1536,1536x576,4096x4096,4096x14336,14336x4096"
SAMPLE = 1e-3  # seconds one sample takes at least: shorter calls are repeated within it


def cpu_name() -> str:
    """The processor, as the system calls it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor()


def copies(layer: torch.nn.Module, packed_bytes: float, rotate: int) -> list[torch.nn.Module]:
    """The layer and enough twins of it that going round them moves `rotate` bytes (0: the layer alone)."""
    count = min(1024, max(1, -(-rotate // int(packed_bytes))))
    return [layer, *(copy.deepcopy(layer) for _ in range(count - 1))]


def arms(linear: torch.nn.Linear, x: torch.Tensor, weights: list[str], rotate: int) -> dict[str, Callable]:
    """Name -> a call that runs one layer once, having been checked against its definition."""
    found = {"float32": linear}
    for name in weights:
        for activations in (None, "int8"):
            layer = rquant.Linear.from_float(linear, weights=name, activations=activations)
            check_linear(layer, linear, x, integer=activations is not None)
            found[name if activations is None else f"{name} a8"] = layer
    runs = {}
    for name, layer in found.items():
        bits = 32 if name == "float32" else int(name[3])
        ring = itertools.cycle(copies(layer, linear.weight.numel() * bits / 8, rotate))
        runs[name] = lambda ring=ring: next(ring)(x)
    return runs


def time_cell(runs: dict[str, Callable], seconds: float) -> dict[str, list[float]]:
    """Seconds of a call of each arm, sample by sample; the arms take turns for `seconds`, at least 5 times."""
    inner = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        inner[name] = max(1, round(SAMPLE / (time.perf_counter() - start)))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while len(samples["float32"]) < 5 or time.perf_counter() < end:
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(inner[name]):
                run()
            samples[name].append((time.perf_counter() - start) / inner[name])
    return samples


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--shapes", default=SHAPES, help="kxn, separated by commas")
    parser.add_argument("--m", default="1,16,128", help="rows of the input")
    parser.add_argument("--weights", default="int8,int4,int2")
    parser.add_argument("--threads", type=int, help="for torch and rquant alike (default: what torch uses)")
    parser.add_argument("--seconds", type=float, default=1.5, help="time of a cell")
    parser.add_argument("--rotate", type=int, default=0, help="MB of weights to go round, 0 for one layer")
    parser.add_argument(
        "--least", action="store_true", help="print the least time, where others use the machine"
    )
    parser.add_argument("--out", type=Path, help="JSON file instead of one in benches/results/")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
        rquant.set_num_threads(args.threads)

    torch.manual_seed(0)
    weights = args.weights.split(",")
    names = [f"{w}{a}" for w in weights for a in ("", " a8")]
    info = {key: str(value) for key, value in rquant.backend_info().items()}
    print("\n".join(f"{key}: {value}" for key, value in info.items()))
    print("microseconds of a call, and how many times faster than float32 (a8: int8 activations)\n")
    print(f"{'k x n':>13} {'m':>4} {'float32':>10}" + "".join(f"{name:>18}" for name in names))
    cells = []
    with torch.inference_mode():
        for shape in args.shapes.split(","):
            k, n = map(int, shape.split("x"))
            linear = torch.nn.Linear(k, n)
            for m in map(int, args.m.split(",")):
                runs = arms(linear, torch.randn(m, k), weights, args.rotate * 10**6)
                samples = time_cell(runs, args.seconds)
                medians = {name: median(values) for name, values in samples.items()}
                least = {name: min(values) for name, values in samples.items()}
                cells.append({"k": k, "n": n, "m": m, "seconds": medians, "least": least})
                took = least if args.least else medians
                ratios = "".join(f"{took[a] * 1e6:>10.1f} {took['float32'] / took[a]:>6.2f}x" for a in names)
                print(f"{shape:>13} {m:>4} {took['float32'] * 1e6:>10.1f}{ratios}", flush=True)
    kind = "least" if args.least else "seconds"
    slower = [
        f"{c['k']}x{c['n']} m {c['m']} {name}"
        for c in cells
        for name in names
        if c[kind][name] > c[kind]["float32"]
    ]
    print(f"\nslower than float32: {'; '.join(slower) or 'none'}")
    threads = torch.get_num_threads()
    out = args.out or Path(__file__).parent / "results" / f"linear-{info.get('isa', 'cpu')}-{threads}t.json"
    out.parent.mkdir(exist_ok=True)
    record = {"backend": info, "machine": cpu_name(), "rotate_mb": args.rotate, "cells": cells}
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
