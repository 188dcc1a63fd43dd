"""One linear layer at a time: rquant, `torch.nn.Linear` in float32, and every peer, in the same run.

    make bench-peers                                                # everything; a rerun goes on where it stopped
    python benches/bench_linear.py --shapes 384x1536 --m 1,16 --classes int4-integer --threads 1
    python benches/bench_linear.py --arms rquant,ort --fresh        # of some arms

A cell is a layer (k inputs, n outputs), rows m, threads, and a class: the bits of a weight, and `integer` (activations
quantized to int8) or `float` (weight-only). In a cell the arms take turns, so that what else the machine does hits all
of them; figures are medians, ratios hold within a cell. Weights come from memory ("cold"); small layers are measured
from cache as well ("hot"). An arm's answer is checked before it is timed: one that raises is recorded with its message,
one that is wrong is recorded as such and not timed. Each class at each number of threads has a process and a JSON file.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SHAPES = "384x1536,1536x384,576x1536,1536x576,4096x4096,4096x14336,14336x4096"
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGBUS, signal.SIGFPE}
CLASSES = "int8-integer,int8-float,int4-integer,int4-float,int2-integer,int2-float"


def arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--shapes", default=SHAPES, help="kxn, separated by commas")
    parser.add_argument("--m", default="1,4,16,64,512", help="rows of the input")
    parser.add_argument("--threads", default="1,2", help="of every arm alike")
    parser.add_argument("--classes", default=CLASSES)
    parser.add_argument("--arms", help="words of the names of the arms to run (float32 always does)")
    parser.add_argument("--seconds", type=float, default=0.3, help="time of a cell, more if samples lack")
    parser.add_argument(
        "--sweep", type=int, default=64, help="MB read before a cold sample; over the L3's size"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="redo cells that are already there for this build of rquant"
    )
    parser.add_argument(
        "--out", type=Path, help="folder (default: results/ beside this file; results/part/ with --arms)"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--crashed", type=json.loads, default={}, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.out is None:
        results = Path(__file__).parent / "results"
        args.out = results / "part" if args.arms else results
    return args


def result_file(args: argparse.Namespace, threads: str, name: str) -> Path:
    return args.out / f"linear-{threads}t-{name}.json"


def run_apart(args: argparse.Namespace, threads: str, name: str) -> int:
    """One class at one number of threads in a process of its own, so that every pool starts at that size.

    An arm that crashes the process is left out when it is started again.
    """
    command = [sys.executable, __file__, "--inside", "--threads", threads, "--classes", name]
    for option in ("shapes", "m", "arms", "seconds", "sweep", "out"):
        value = getattr(args, option)
        command += [] if value is None else [f"--{option}", str(value)]
    # quanto compiles an extension with the ninja beside this Python
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PATH": path}
    under_way = result_file(args, threads, name).with_suffix(".arm")
    crashed: dict[str, str] = {}
    fresh = ["--fresh"] * args.fresh
    while True:
        code = subprocess.run(
            command + fresh + ["--crashed", json.dumps(crashed)], env=environment
        ).returncode
        arm = under_way.read_text() if under_way.exists() else ""
        under_way.unlink(missing_ok=True)
        if -code not in CRASHES or not arm or arm in crashed:
            return code
        crashed[arm] = f"{signal.Signals(-code).name} ended the process"
        fresh = []  # the cells before the crash need not be done again


def inside(args: argparse.Namespace) -> None:
    """The cells of one class at one number of threads."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # some peers log in each call, which would be charged to them
    import numpy as np
    import torch
    from cells import Cell, LayerBench
    from machine import build_of_rquant, describe
    from peers import Kind
    from tqdm import tqdm

    import rquant

    threads, name = int(args.threads), args.classes
    torch.set_num_threads(threads)
    rquant.set_num_threads(threads)
    kind = Kind(int(name[3]), name.endswith("integer"), threads)
    file = result_file(args, args.threads, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    under_way = file.with_suffix(".arm")
    record = json.loads(file.read_text()) if file.exists() else {"cells": []}
    build = build_of_rquant()
    done = {Cell(**c["cell"]) for c in record["cells"] if c["rquant"] == build and not args.fresh}
    wanted = []
    for shape, m in itertools.product(args.shapes.split(","), map(int, args.m.split(","))):
        k, n = map(int, shape.split("x"))
        for weights in ("cold", "hot") if min(k, n) < 1024 else ("cold",):
            wanted.append(Cell(k, n, m, threads, name, weights))
    todo = [cell for cell in wanted if cell not in done]
    often = 0.1 if sys.stderr.isatty() else 30
    bar = tqdm(total=len(todo), desc=file.stem, unit="cell", mininterval=often, disable=not todo)
    sweep = np.ones(args.sweep * 250_000, np.float32)
    for (k, n), group in itertools.groupby(todo, lambda cell: (cell.k, cell.n)):
        part = args.arms and args.arms.split(",")
        bench = LayerBench(kind, k, n, part, args.crashed, under_way.write_text)
        for cell in group:
            start = time.perf_counter()
            result = {
                "cell": cell._asdict(),
                "rquant": build,
                "arms": bench.measure(cell, args.seconds, sweep),
                "took_s": round(time.perf_counter() - start, 2),
            }
            record["cells"] = [c for c in record["cells"] if Cell(**c["cell"]) != cell] + [result]
            record["machine"] = describe()
            save(file, record)
            bar.update()
        bench.free()
    under_way.unlink(missing_ok=True)
    bar.close()


def save(file: Path, record: dict) -> None:
    """Whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(file)


def main() -> None:
    args = arguments()
    if args.inside:
        inside(args)
        return
    failed = []
    for threads, name in itertools.product(args.threads.split(","), args.classes.split(",")):
        if run_apart(args, threads, name):
            failed.append(f"{name} at {threads}")
    print(f"the table: python benches/linear_table.py {args.out}/linear-*t-*.json")
    if failed:
        sys.exit(f"stopped before their end: {', '.join(failed)}; run it again for the rest")


if __name__ == "__main__":
    main()
