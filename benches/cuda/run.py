"""`run.py [A B C D] --out DIR`: the CUDA kernels on the GPU at hand, proved and timed; `make cuda-bench` does all.

A, correctness: every kernel, type and shape against float64, graphs, streams, the sanitizer. B, speed: what the device can
do, the crossovers by which products choose their route (kept where rquant finds them), each kernel beside its goal. C, peers:
torch, bitsandbytes and torchao on the same operands. D, decoding with an 8B model of random weights. Each step appends to
DIR/STEP.jsonl, is bounded by --minutes, and goes on where it stopped when run again; DIR/report.md shows all.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # deterministic torch wants it, and must be told at the start

import torch
from book import Book
from report import report

STEPS = ("A", "B", "C", "D")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "steps", nargs="*", choices=[*STEPS, "sanitized", []], help="all without", metavar="STEP"
    )
    parser.add_argument("--out", type=Path, default=Path("target/cuda-bench"), help="folder of what is found")
    parser.add_argument("--minutes", type=float, default=9, help="of each step; 9 without")
    parser.add_argument("--fresh", action="store_true", help="measure anew what is recorded")
    parser.add_argument("--small", action="store_true", help="few sizes, to see that it works")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "no CUDA device here: nothing to prove or to time (make cuda-check needs none)", file=sys.stderr
        )
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    if options.steps == ["sanitized"]:
        return sanitized(device)
    left, failed = 0, 0
    for step in options.steps or STEPS:
        book = Book(options.out, step, options.minutes, options.fresh)
        run(step, book, device, options.out, options.small)
        left, failed = left + book.left, failed + len(book.failed)
        for record in book.failed:
            print(f"{step}: {record['key']}: {record.get('error') or record}", file=sys.stderr)
        print(
            f"step {step}: {len(book.records)} done, {len(book.failed)} wrong, {book.left} left", flush=True
        )
        (options.out / "report.md").write_text(report(options.out))
    print(f"{options.out}/report.md")
    if left:
        print(f"{left} left for want of time: the same command goes on", file=sys.stderr)
    return 1 if failed else 2 if left else 0


def run(step: str, book: Book, device: torch.device, folder: Path, small: bool) -> None:
    """One step into its book."""
    from machine_of import describe

    if "machine" not in book.records:
        book.add("machine", describe(device))
    if step == "A":
        import correctness
        import streams

        book.fill(streams.units(device, folder))
        correctness.poisoned()
        book.fill(correctness.sweep(device, **correctness.SMALL) if small else correctness.sweep(device))
        torch.use_deterministic_algorithms(False)
        if not small:
            book.fill(streams.sanitized(folder))
    elif step == "B":
        import speed

        speed.fill(book, device, small)
    elif step == "C":
        import rivals

        book.fill(rivals.units(device, small))
    else:
        import decode

        book.fill(decode.units(device, small))


def sanitized(device: torch.device) -> int:
    """The small sweep alone, for a sanitizer to look at."""
    import correctness

    wrong = [key for key, check in correctness.sweep(device, **correctness.TINY) if not check()["ok"]]
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
