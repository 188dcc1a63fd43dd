"""How fast a float weight is quantized and packed, beside a plain copy of it, torch's own operators and other libraries.

    python benches/bench_quantize.py
    python benches/bench_quantize.py --shape 2048x2048 --schemes int4-g64 --dtypes float32 --threads 1

`quantize` makes ranges, scales, zero points and codes, `pack` makes of these the panels that the kernels read, and
`both` is what `rquant.Linear.from_float` does. Figures are GB/s of the float weight, which is read from memory. `copy` is
torch's copy of it to memory that is there, `clone` one to new memory, whose pages the system may have to find first.
`eager` is plain rounding in torch, codes a byte each; `per_channel` is torch.quantize_per_channel and its scales. torchao,
quanto and bitsandbytes, where installed, make a layer of their own. The arms take turns; figures are medians.

Before an arm is timed its answer is checked: rquant's panels must be those of `from_float`, and no weight further than
half a scale from what it was; the others' error must be as small as plain rounding's.
"""

import argparse
import itertools
import logging
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from cells import TOLERANCE, timed
from machine import describe
from models.report import save
from quantizers import Scheme, of_peers, of_torch, ours
from tqdm import tqdm
from turns import Turn, settle, take_turns

import rquant

COLUMNS = "quantize", "pack", "both", "copy", "clone", "eager", "per_channel", "torchao", "quanto", "bnb"
MODEL = 7e9  # weights


def measure(weight: torch.Tensor, scheme: Scheme, threads: int, seconds: float, sweep: np.ndarray) -> dict:
    """Each arm's figures, or why there are none."""
    torch.set_num_threads(threads)
    rquant.set_num_threads(threads)
    arms = ours(weight, scheme)
    records = {}
    for name, (run, error) in (of_torch(weight, scheme) | of_peers(weight, scheme, threads)).items():
        try:
            found = error(run())
        except Exception as absent:
            records[name] = {"absent": f"{type(absent).__name__}: {absent}"}
            continue
        records[name] = {"error": found}
        if found <= TOLERANCE[scheme.bits]:
            arms[name] = run
    turns = {}
    for name, run in arms.items():
        run()
        settle()
        turns[name] = Turn([run], cold=True, first=timed(run)[0])
    take_turns(turns, seconds, sweep)
    for name, turn in turns.items():
        records[name] = records.get(name, {}) | turn.result()
    return records


def table(cells: list[dict]) -> str:
    """Markdown: a row a cell, GB/s of float weight."""
    heads = ["weight", "threads", "scheme", *COLUMNS, "both / copy", f"{MODEL:.0e} weights, s"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---:|---" + "|---:" * (len(heads) - 3) + "|"]
    for cell in cells:
        took = {name: arm["median_us"] / 1e6 for name, arm in cell["arms"].items() if "median_us" in arm}
        row = [cell["dtype"], str(cell["threads"]), cell["scheme"]]
        row += [f"{cell['bytes'] / took[name] / 1e9:.2f}" if name in took else "" for name in COLUMNS]
        row += [f"{took['copy'] / took['both']:.0%}", f"{MODEL / cell['weights'] * took['both']:.1f}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def remarks(cells: list[dict]) -> str:
    """Why an arm has no figures, a line each."""
    found = {}
    for cell in cells:
        for name, arm in cell["arms"].items():
            if "median_us" not in arm:
                why = arm.get("absent") or f"wrong answer, error {arm['error']:.3f}"
                found.setdefault(f"{name}: {why.splitlines()[0]}", {})[cell["scheme"]] = None
    return "\n".join(f"- {text} [{', '.join(schemes)}]" for text, schemes in found.items())


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--shape", default="4096x4096", help="kxn")
    parser.add_argument("--schemes", default="int8,int4-g128,int4-g64,int4-g32,int2-g64,int2-g32")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=0.3, help="time of a cell, more if samples lack")
    parser.add_argument("--sweep", type=int, default=64, help="MB read before a sample; over the L3's size")
    out = Path(__file__).parent / "results" / "quantize.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON file")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    # quanto compiles an extension with the ninja beside this Python
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    k, n = map(int, args.shape.split("x"))
    torch.manual_seed(0)
    floats = torch.randn(n, k) / k**0.5
    sweep = np.ones(args.sweep * 250_000, np.float32)
    cells = []
    wanted = itertools.product(*(option.split(",") for option in (args.dtypes, args.threads, args.schemes)))
    for dtype, threads, scheme in tqdm(list(wanted), unit="cell", leave=False):
        weight = floats.to(getattr(torch, dtype))
        with torch.inference_mode():
            arms = measure(weight, Scheme.of(scheme), int(threads), args.seconds, sweep)
        cell = {"k": k, "n": n, "dtype": dtype, "threads": int(threads), "scheme": scheme}
        cells.append(cell | {"weights": weight.numel(), "bytes": weight.nbytes, "arms": arms})
        save({"machine": describe(), "cells": cells}, args.out)
    print("GB/s of the float weight", table(cells), remarks(cells), f"written: {args.out}", sep="\n\n")


if __name__ == "__main__":
    main()
