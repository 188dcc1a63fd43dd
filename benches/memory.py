"""What a packed model costs in memory, in a process that did nothing but load it.

    python benches/memory.py
    python benches/memory.py --models minilm

For each model and type the model is saved once; then a fresh process builds the model's skeleton on the meta
device and loads the file, while this one reads the other's anonymous memory (RssAnon of /proc/<pid>/status) as
fast as it can. Printed: growth over the bytes of all the model's tensors (limit 1.1), how far the peak stood above those
bytes in units of the largest tensor (limit 1), and bits per weight of the quantized layers, scales included.
"""

import argparse
import copy
import json
import select
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open

import rquant

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from table import print_table
from zoo import minilm, smollm2

ZOO = {"minilm": minilm, "smollm2": smollm2}
GROUPS = {"int8": None, "int4": 128, "int2": 32}
LIMITS = {"int8": 8.1, "int4": 4.3, "int2": 2.8}  # bits per weight


def anonymous(pid: int | str) -> int:
    """RssAnon of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("no RssAnon in /proc/<pid>/status: this needs Linux")


def child(name: str, path: str) -> None:
    """Load when told to, and say how many bytes the model's tensors have, packed and in all."""
    warm = rquant.Linear.from_float(torch.nn.Linear(64, 64), weights="int8")
    warm(torch.zeros(1, 64))  # starts the threads
    skeleton = ZOO[name].skeleton()
    print("ready", flush=True)
    sys.stdin.readline()
    model = rquant.load(path, skeleton)
    held = {t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    packed = {t.data_ptr(): t.nbytes for t in model.buffers() if t.dtype == torch.uint8}
    sizes = {"held": sum(held.values()), "largest": max(held.values()), "packed": sum(packed.values())}
    print(json.dumps(sizes), flush=True)
    sys.stdin.readline()  # stay, to be looked at


def load_in_child(name: str, path: Path) -> dict[str, int]:
    """Bytes before, after and at the peak of loading, beside what `child` says."""
    command = [sys.executable, __file__, "--child", name, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        before = peak = anonymous(process.pid)
        process.stdin.write("load\n")
        process.stdin.flush()
        while not select.select([process.stdout], [], [], 0)[0]:
            peak = max(peak, anonymous(process.pid))
        sizes = json.loads(process.stdout.readline())
        after = anonymous(process.pid)
        process.communicate("done\n")
    return {**sizes, "grown": after - before, "peak": max(peak, after) - before}


def bits_in_file(path: Path, model: torch.nn.Module) -> tuple[float, int]:
    """Bits of the file per quantized weight, scales and zero points included, and how many weights."""
    weights = size = 0
    shapes = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            layer, _, part = name.rpartition(".")
            if part.startswith("weight_"):
                size += file.get_tensor(name).nbytes
                weights += shapes[f"{layer}.weight"] if part == "weight_packed" else 0
    return 8 * size / weights, weights


def measure(name: str, weights: str, folder: Path) -> tuple[list[str], bool]:
    """One row of the table, and whether it keeps every limit."""
    model, _ = ZOO[name].load()
    shapes = copy.deepcopy(model).to("meta")
    path = folder / f"{name}-{weights}.safetensors"
    rquant.quantize(model, weights=weights, group_size=GROUPS[weights])
    rquant.freeze(model)
    rquant.save(model, path)
    bits, count = bits_in_file(path, shapes)
    got = load_in_child(name, path)
    resident = 8 * got["packed"] / count
    growth, over = got["grown"] / got["held"], (got["peak"] - got["held"]) / got["largest"]
    kept = max(bits, resident) <= LIMITS[weights] and growth <= 1.1 and over <= 1
    row = [
        name,
        weights if GROUPS[weights] is None else f"{weights} g{GROUPS[weights]}",
        f"{bits:.3f}",
        f"{resident:.3f}",
        f"{LIMITS[weights]}",
        f"{got['held'] / 1e6:.1f}",
        f"{got['grown'] / 1e6:.1f}",
        f"{growth:.3f}",
        f"{over:+.2f}",
    ]
    return row, kept


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--models", default="minilm,smollm2")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(*args.child)
    with tempfile.TemporaryDirectory() as folder:
        measured = [measure(name, w, Path(folder)) for name in args.models.split(",") for w in GROUPS]
    header = ["model", "weights", "bits in file", "resident", "limit", "tensors MB", "grown MB"]
    header += ["grown/tensors", "peak over tensors, in largest"]
    print_table("Loading a packed model in a fresh process", header, [row for row, _ in measured], 2)
    kept = all(kept for _, kept in measured)
    print(f"\nlimits: {'kept' if kept else 'BROKEN'}")
    sys.exit(not kept)


if __name__ == "__main__":
    main()
