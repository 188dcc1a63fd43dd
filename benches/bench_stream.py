"""`rquant quantize` on a 4 GB checkpoint made on the spot: GB/s, peak memory, and the same bytes after being killed.

    python benches/bench_stream.py
    python benches/bench_stream.py --gb 0.5 --weights int8 --folder /mnt/scratch

The checkpoint is of the shape of a Llama: bfloat16, shards of a gigabyte, the embedding and the head an eighth of it each.
For each type it is converted undisturbed; then once more, killed (kill -9) several times, whenever another part of the
result is on disk, and run again until it is done; the bytes of both must be equal. While it runs, its peak memory is read
from /proc: `VmHWM` counts every page, those of mapped files too, and `RssAnon` what it allocated. The limit is 1 GB and the
largest tensor. `read` is how fast the same files are read here by themselves. Needs Linux and three times the size on disk.
"""

import argparse
import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import cpu_name

from rquant.io.checkpoint import INDEX, index_text, shard_name
from rquant.io.safetensors_header import Spec, layout

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from table import print_table

HIDDEN, INNER, KEYS, VOCABULARY = 3072, 8192, 1024, 128_256
LIMIT = 1e9  # bytes, besides the largest tensor


def shapes(gigabytes: float) -> dict[str, tuple[int, int]]:
    """Weights of a language model of about this size in bfloat16; a small one has a small vocabulary."""
    vocabulary = min(VOCABULARY, int(gigabytes * 1e9 / 8 / HIDDEN / 2))
    found = {"model.embed_tokens": (vocabulary, HIDDEN), "lm_head": (vocabulary, HIDDEN)}
    block = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    size = sum(n * k for n, k in block.values()) * 2
    rest = gigabytes * 1e9 - 2 * vocabulary * HIDDEN * 2
    for i in range(max(1, round(rest / size))):
        found |= {f"model.layers.{i}.{name}": shape for name, shape in block.items()}
    return found


def make(folder: Path, gigabytes: float) -> tuple[int, int]:
    """Write the checkpoint; returns its bytes and those of its largest tensor."""
    specs = {f"{name}.weight": Spec("BF16", shape) for name, shape in shapes(gigabytes).items()}
    shards: list[dict[str, Spec]] = [{}]
    for name, spec in specs.items():
        if shards[-1] and sum(s.nbytes for s in shards[-1].values()) + spec.nbytes > 1e9:
            shards.append({})
        shards[-1][name] = spec
    folder.mkdir()
    random, headers = np.random.default_rng(0), {}
    for i, shard in enumerate(shards):
        name = shard_name(i + 1, len(shards))
        headers[name] = layout(shard, {"format": "pt"})
        with open(folder / name, "wb") as file:
            file.write(headers[name].data)
            for tensor, spec in headers[name].tensors.items():
                n, k = spec.shape
                for row in range(0, n, 4096):
                    values = random.standard_normal((min(4096, n - row), k), np.float32) * 0.02
                    file.write((values.view(np.uint32) >> 16).astype("<u2").data)
                assert file.tell() == headers[name].start[tensor] + spec.nbytes
    (folder / INDEX).write_text(index_text(headers, {}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    return sum(spec.nbytes for spec in specs.values()), max(spec.nbytes for spec in specs.values())


def convert(source: Path, out: Path, weights: str, kill_at: float | None = None) -> dict[str, float]:
    """Run the command; its seconds, exit code, and peak memory in bytes. Killed once so many bytes are written."""
    command = [sys.executable, "-m", "rquant", "quantize", str(source), str(out), "--weights", weights]
    seen, began, used = {"VmHWM": 0, "RssAnon": 0}, time.monotonic(), processor_time()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in seen:
                    seen[name] = max(seen[name], int(value.split()[0]) * 1024)
            if kill_at is not None and written(out.with_name(f"{out.name}.partial")) > kill_at:
                process.kill()
            time.sleep(0.005)
    seconds, used = time.monotonic() - began, processor_time() - used
    return {**seen, "seconds": seconds, "cpu": used, "code": process.returncode}


def processor_time() -> float:
    """Seconds of all processes that this one has waited for, which a busy machine does not lengthen much."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def written(folder: Path) -> int:
    """Bytes that the files of a folder take; what is not yet written of a file of its full length does not count."""
    count = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            count += path.stat().st_blocks * 512
    return count


def digest(folder: Path) -> str:
    """SHA-256 over names and bytes of all files."""
    seen = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        with open(path, "rb") as file:
            seen.update(
                f"{path.relative_to(folder)}\n".encode() + hashlib.file_digest(file, "sha256").digest()
            )
    return seen.hexdigest()


def read_speed(folder: Path) -> float:
    """Bytes a second."""
    buffer, count, began = bytearray(2**24), 0, time.monotonic()
    for path in folder.iterdir():
        with open(path, "rb", buffering=0) as file:
            while got := file.readinto(buffer):
                count += got
    return count / (time.monotonic() - began)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--weights", default="int8,int4")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--folder", help="where to write; default: the system's")
    args = parser.parse_args()
    rows, kept = [], True
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        size, largest = make(folder / "in", args.gb)
        for weights in args.weights.split(","):
            os.sync()  # what was written before is not to be waited for now
            speed = read_speed(folder / "in")
            whole = convert(folder / "in", folder / "whole", weights)
            out = sum(path.stat().st_size for path in (folder / "whole").iterdir())
            killed = 0
            while not (folder / "killed").exists():
                at = out * (killed + 1) / (args.kills + 1) if killed < args.kills else None
                code = convert(folder / "in", folder / "killed", weights, at)["code"]
                if code not in (0, -signal.SIGKILL):
                    sys.exit(f"rquant quantize failed with {code}")
                killed += code != 0
            equal = whole["code"] == 0 and digest(folder / "whole") == digest(folder / "killed")
            kept &= equal and killed > 0 and whole["VmHWM"] < LIMIT + largest
            rows.append(
                [
                    weights,
                    f"{size / 1e9:.2f}",
                    f"{out / 1e9:.2f}",
                    f"{whole['seconds']:.1f}",
                    f"{whole['cpu']:.1f}",
                ]
                + [f"{size / 1e9 / whole['seconds']:.2f}", f"{speed / 1e9:.2f}"]
                + [f"{whole[key] / 1e9:.2f}" for key in ("VmHWM", "RssAnon")]
                + [f"{(LIMIT + largest) / 1e9:.2f}", str(killed), "equal" if equal else "DIFFERENT"]
            )
            shutil.rmtree(folder / "whole")
            shutil.rmtree(folder / "killed", ignore_errors=True)
    header = [
        "weights",
        "GB in",
        "GB out",
        "seconds",
        "CPU s",
        "GB/s",
        "read GB/s",
        "VmHWM GB",
        "RssAnon GB",
        "limit GB",
    ]
    header += ["killed", "bytes"]
    print_table(f"rquant quantize, {cpu_name()}", header, rows, 1)
    print(f"\nlimits: {'kept' if kept else 'BROKEN'}")
    sys.exit(not kept)


if __name__ == "__main__":
    main()
