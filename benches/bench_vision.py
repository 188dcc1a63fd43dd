"""Static int8 convolutional networks: rquant beside torch float32, torch.ao and onnxruntime, in the same run.

    make bench-vision
    python benches/bench_vision.py --nets resnet18 --batches 1 --threads 1 --arms "rquant,U8S8 QDQ"

ResNet18 and MobileNetV2 at 224x224, random weights of a natural size (`examples/zoo/vision`), float32 pictures in and
logits out. Every network is calibrated on the same pictures. Each arm's logits of other pictures are held against float
before it is timed: the cosine of what is left after subtracting the calibration pictures' mean logits. Then the arms take
turns, caches as the calls leave them; figures are medians. Each number of threads has a process, so that every pool starts
at that size, and a JSON file.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

NETS, BATCHES, THREADS = "resnet18,mobilenet_v2", "1,16", "1,2"


def arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--nets", default=NETS, help="of examples/zoo/vision")
    parser.add_argument("--batches", default=BATCHES)
    parser.add_argument("--threads", default=THREADS, help="of every arm alike")
    parser.add_argument("--arms", help="words of the names of the arms to run (float32 always does)")
    parser.add_argument("--seconds", type=float, default=20, help="time of a cell, more if samples lack")
    parser.add_argument("--out", type=Path, help="folder (default: results/, or results/part/ for a part)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.out is None:
        results = Path(__file__).parent / "results"
        whole = (args.arms, args.nets, args.batches) == (None, NETS, BATCHES)
        args.out = results if whole else results / "part"
    return args


def result_file(args: argparse.Namespace, threads: str) -> Path:
    return args.out / f"vision-{threads}t.json"


def run_apart(args: argparse.Namespace, threads: str) -> int:
    """One number of threads in a process of its own."""
    command = [sys.executable, __file__, "--inside", "--threads", threads]
    for option in ("nets", "batches", "arms", "seconds", "out"):
        value = getattr(args, option)
        command += [] if value is None else [f"--{option}", str(value)]
    return subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    ).returncode


def inside(args: argparse.Namespace) -> None:
    """The cells of one number of threads."""
    import torch
    from machine import describe
    from tqdm import tqdm

    import rquant

    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from vision.cells import measure

    threads = int(args.threads)
    torch.set_num_threads(threads)
    rquant.set_num_threads(threads)
    file = result_file(args, args.threads)
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": describe(), "cells": []}
    part = args.arms and args.arms.split(",")
    often = 0.1 if sys.stderr.isatty() else 30
    cells = list(itertools.product(args.nets.split(","), map(int, args.batches.split(","))))
    for done, (net, batch) in enumerate(cells, 1):
        start = time.perf_counter()
        said = f"{file.stem}: {net}, batch {batch} ({done}/{len(cells)})"
        with tqdm(desc=said, mininterval=often, leave=False) as bar:
            arms = measure(net, batch, threads, part, args.seconds, bar.update)
        took = round(time.perf_counter() - start, 1)
        record["cells"].append({"net": net, "batch": batch, "threads": threads, "arms": arms, "took_s": took})
        save(file, record)


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
    from vision.report import markdown, summary

    failed = [threads for threads in args.threads.split(",") if run_apart(args, threads)]
    files = [result_file(args, threads) for threads in args.threads.split(",") if threads not in failed]
    cells = [cell for file in files for cell in json.loads(file.read_text())["cells"]]
    print(markdown(cells))
    if args.arms is None:
        print("", summary(cells), sep="\n")
    if failed:
        sys.exit(f"stopped before their end: {', '.join(failed)} threads")


if __name__ == "__main__":
    main()
