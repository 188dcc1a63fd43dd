"""Whose threads rquant should run on beside torch: OpenMP's, which torch uses, or a pool of its own.

    python benches/bench_threads.py
    python benches/bench_threads.py --threads 2,4 --m 1,64 --rounds 9

The pattern of a model, torch op, our op, torch op: LayerNorm(384), int8 384x1536 with int8 activations, GELU, int8
1536x384, with biases; microseconds of the whole. rquant settles on its threads when its torch layer is imported, so each
arm has a process. All of them live at once; one is timed at a time, the others sleep. A round goes through every m and
every arm; a figure is the median over the rounds of a round's median. Linux: elsewhere rquant has its own pool only.

Before an arm is timed its answer is held against float64 and the float weights, each packed layer against its own
integers, and the names of the process's threads must say whose they are.
"""

import argparse
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

SIZES = 384, 1536
SAMPLES = 5  # a round, of a millisecond or one call each


class Arm(NamedTuple):
    """Who has how many threads."""

    title: str
    quantized: bool = True
    own_pool: bool = False
    torch_alone: bool = False  # rquant has 1 thread
    single: bool = False  # everything has


ARMS = {
    "openmp": Arm("OpenMP's threads"),
    "pool": Arm("own pool", own_pool=True),
    "torch-alone": Arm("rquant 1 thread", torch_alone=True),
    "single": Arm("all 1 thread", single=True),
    "float32": Arm("torch float32", quantized=False),
}


def child(arm: Arm, threads: int) -> None:
    """For each m that is read from standard input write a round's samples, in seconds."""
    import torch

    import rquant

    if arm.own_pool:
        rquant._native.share_openmp = lambda: None  # the torch layer, not imported yet, would call it
    torch.set_num_threads(1 if arm.single else threads)
    rquant.set_num_threads(1 if arm.single or arm.torch_alone else threads)
    from cells import timed
    from turns import Turn, settle

    with torch.inference_mode():
        model = checked_model(arm, threads)
        turns = {}
        for line in sys.stdin:
            m = int(line)
            if m not in turns:
                x = torch.randn(m, SIZES[0])
                runs = [lambda x=x: model(x)]
                runs[0]()
                settle()
                turns[m] = Turn(runs, cold=False, first=timed(runs[0])[0])
            for _ in range(SAMPLES):
                turns[m].sample(sweep=None)
            print(json.dumps(turns[m].samples[-SAMPLES:]), flush=True)


def checked_model(arm: Arm, threads: int):
    """The arm's model, once its answer and its threads are what they should be."""
    import torch
    from cells import TOLERANCE
    from check import check_linear

    import rquant

    torch.manual_seed(0)
    k, n = SIZES
    linears = torch.nn.Linear(k, n), torch.nn.Linear(n, k)
    model = torch.nn.Sequential(torch.nn.LayerNorm(k), linears[0], torch.nn.GELU(), linears[1]).eval()
    x = torch.randn(512, k)
    want = model.double()(x.double())
    model.float()
    if arm.quantized:
        for i in (1, 3):
            model[i] = rquant.Linear.from_float(model[i], weights="int8", activations="int8")
            check_linear(model[i], linears[i // 2], model[:i](x), integer=True)
    error = ((model(x) - want).norm() / want.norm()).item()
    if not error <= TOLERANCE[8 if arm.quantized else 32]:
        raise AssertionError(f"{arm.title}: relative error {error}")
    names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    if any(name.startswith("rquant-") for name in names) != (arm.own_pool and threads > 1):
        raise AssertionError(f"{arm.title}: has the threads {names}")
    return model


def ask(process: subprocess.Popen, m: int) -> float:
    """The median of one round of one arm, in seconds."""
    process.stdin.write(f"{m}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"{process.args} ended with status {process.wait()}")
    return median(json.loads(answer))


def measure(threads: int, sizes: list[int], rounds: int) -> list[dict]:
    """A record for each m: every arm's medians, a round each, and their median."""
    from tqdm import tqdm

    found = {m: {name: [] for name in ARMS} for m in sizes}
    total = rounds * len(sizes) * len(ARMS)
    with ExitStack() as stack, tqdm(total=total, desc=f"{threads} threads", leave=False) as bar:
        processes = {}
        for name in ARMS:
            command = [sys.executable, __file__, "--threads", str(threads), "--child", name]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            processes[name] = stack.enter_context(process)
        for process in processes.values():  # ready, checked and quiet again, all of them, before any is timed
            ask(process, sizes[0])
        for _ in range(rounds):
            for m in sizes:
                for name, process in processes.items():
                    found[m][name].append(ask(process, m) * 1e6)
                    bar.update()
    return [
        {"threads": threads, "m": m, "median_us": {name: median(of) for name, of in arms.items()}, "us": arms}
        for m, arms in found.items()
    ]


def table(cells: list[dict]) -> str:
    """Markdown: a row for each m, microseconds."""
    heads = ["threads", "m", *(arm.title for arm in ARMS.values())]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---:|" * len(heads)]
    for cell in cells:
        figures = [f"{cell['median_us'][name]:,.0f}" for name in ARMS]
        lines.append("| " + " | ".join([str(cell["threads"]), str(cell["m"]), *figures]) + " |")
    return "\n".join(lines)


def main() -> None:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--threads", type=numbers, default=[2])
    parser.add_argument("--m", type=numbers, default=[1, 4, 16, 64, 128, 512], help="rows of the input")
    parser.add_argument("--rounds", type=int, default=5)
    out = Path(__file__).parent / "results" / "threads.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON file")
    parser.add_argument("--child", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(ARMS[args.child], *args.threads)
    from machine import describe
    from models.report import save

    cells = [cell for threads in args.threads for cell in measure(threads, args.m, args.rounds)]
    save({"machine": describe(), "cells": cells}, args.out)
    print(f"Microseconds of the whole\n\n{table(cells)}\n\nwritten: {args.out}")


if __name__ == "__main__":
    main()
