"""Float checkpoints for the tests of streaming, and a process that kills itself while it converts one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from rquant.scheme import Scheme
from rquant.streaming import Wish

SHARDS = 3


def small():
    """Every dtype that is quantized, odd sizes, scales outside float16's range, and what stays as it is."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "body.0.up.weight": normal(70, 67).bfloat16(),
        "body.0.up.bias": normal(70),
        "body.0.down.weight": normal(33, 130).half(),
        "body.1.up.weight": normal(70, 67) * 1e-7,
        "body.1.zero.weight": torch.zeros(3, 5),
        "body.1.conv.weight": normal(4, 3, 2),
        "embed_tokens.weight": normal(40, 16).bfloat16(),
        "norm.weight": torch.ones(70).half(),
        "gate.weight": normal(4, 70),
        "steps": torch.tensor(7),
        "nothing.weight": torch.zeros(0, 4),
    }


def wish(weights="int4", group_size=None, symmetric=None, optimizer="minmax", **options):
    """For `quantize_checkpoint`, by what a scheme is made of."""
    return Wish(Scheme.resolve(weights, group_size, symmetric, optimizer), **options)


def save_shards(folder: Path, shards):
    """A Hugging Face directory of these state dicts, with what lies beside the weights."""
    folder.mkdir()
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": True}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "sub").mkdir()
    (folder / "sub/vocab.txt").write_text("a b c")
    (folder / "pytorch_model.bin").write_text("pickle")
    (folder / ".cache").write_text("hidden")


def large(folder: Path, megabytes: int):
    """Shards of bfloat16 and float32 matrices, and one that stays."""
    rows = max(1, megabytes * 2**20 // SHARDS // 4 // 6144)
    save_shards(
        folder,
        [
            {
                f"layers.{i}.a.weight": torch.randn(rows, 1024),
                f"layers.{i}.b.weight": torch.randn(rows, 2048).bfloat16(),
                f"layers.{i}.c.weight": torch.randn(rows, 2048).bfloat16(),
                f"layers.{i}.embed.weight": torch.randn(rows, 2048).bfloat16(),
                f"layers.{i}.norm.weight": torch.ones(2048),
            }
            for i in range(SHARDS)
        ],
    )


# Events are a file begun, a tensor written, a file renamed. At one of them the process is killed; or it waits once it has begun.
_PROCESS = """
import os, signal, sys, time
from rquant.streaming import output
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start what is in the background without it
kind, left, wait = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
output._AT_ONCE = int(sys.argv[4])
def event(name, function):
    def call(*args):
        global left
        if kind in (name, "any"):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        done = function(*args)
        if name == "begin":
            time.sleep(wait)
        return done
    return call
output.Output.__init__ = event("begin", output.Output.__init__)
output.Output.write = event("write", output.Output.write)
os.replace = event("rename", os.replace)
from rquant.cli import main
sys.exit(main(["quantize", *sys.argv[5:]]))
"""


def converting(*arguments, kill_at=("none", 0), wait=0.0, at_once=2**20):
    """A process that runs `rquant quantize ARGUMENTS`; `kill_at`: after so many events of a kind, or of "any"."""
    options = [*map(str, kill_at), str(wait), str(at_once)]
    command = [sys.executable, "-c", _PROCESS, *options, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def begun(*arguments):
    """The same, in the middle of a file, and there it stays for ten minutes. The first argument after the source is the result."""
    process = converting(*arguments, wait=600)
    while not list(Path(f"{arguments[1]}.partial").rglob("*.part")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def convert(*arguments, **options):
    """The same, done: (exit code, what it printed, errors)."""
    process = converting(*arguments, **options)
    out, err = process.communicate()
    return process.returncode, out, err


KILLED = -signal.SIGKILL


def contents(path: Path):
    """Bytes by relative name, of a directory or file."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def free_of(path: Path):
    """Whether nothing but `path` was left beside it by a conversion."""
    return not any(name.endswith(".partial") for name in os.listdir(path.parent))
