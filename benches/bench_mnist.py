"""Accuracy of a small net of convolutions on handwritten digits, however it is quantized: means over 3 seeds.

    python benches/bench_mnist.py               # ten minutes on 2 cores; a rerun goes on where it stopped
    python benches/bench_mnist.py --seeds 1     # a third of it

`examples/zoo/digits.py` has the data (3,500 pictures to train on, 1,500 held out, always the same ones) and the net. Each
seed trains a float net, of which all other arms are made: `dynamic`, one scale a picture or row; `static`, BatchNorm folded
and scales of activations calibrated on 256 of the training pictures; `QAT`, trained on from the static one with LSQ's
scales for 10 epochs. Weights have their types' default groups. What is measured is frozen.
"""

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe
from torch import nn
from tqdm import tqdm

import rquant
from rquant import qat

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from zoo import digits

METHODS = ["minmax", "moving_average", "percentile", "mse", "entropy"]
CALIBRATED = 256
FLOAT_EPOCHS, QAT_EPOCHS = 20, 10


def dynamic(net: nn.Module, weights: str) -> nn.Module:
    """BatchNorm folded, nothing calibrated."""
    rquant.fold_bn(net, digits.pictures()[0][:8])
    rquant.quantize(net, weights, activations="int8")
    return net


def calibrate(net: nn.Module, method: str) -> None:
    """On the first of the training pictures."""
    with rquant.Calibration(method=method):
        for batch in digits.pictures()[0][:CALIBRATED].split(32):
            net(batch)


def static(net: nn.Module, weights: str, method: str = "mse", optimizer: str = "minmax") -> nn.Module:
    """BatchNorm folded, activations calibrated."""
    rquant.fold_bn(net, digits.pictures()[0][:8])
    rquant.quantize(net, weights, activations="int8", optimizer=optimizer)
    calibrate(net, method)
    return net


def trained(net: nn.Module, weights: str, seed: int, distill: bool = False, learn: bool = True) -> nn.Module:
    """Trained on with the rounding in place; scales learn too, or are chosen anew by min-max and moving averages."""
    teacher = copy.deepcopy(net)
    rquant.quantize(net, weights, activations="int8")
    qat.fold_bn(net, digits.pictures()[0][:8])
    calibrate(net, "mse")
    qat.prepare(net) if learn else qat.prepare(net, weights="rounded", activations="observed")

    def loss(logits: torch.Tensor, labels: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            said = teacher(x)
        return qat.distillation_loss(logits, said, labels)

    digits.train(net, QAT_EPOCHS, 4e-3, seed, loss if distill else None)
    return net


Arm = Callable[[nn.Module, int], nn.Module]
ARMS: dict[str, Arm] = {
    "float": lambda net, seed: net,
    "int8 dynamic": lambda net, seed: dynamic(net, "int8"),
}
for name in METHODS:
    ARMS[f"int8 static, {name}"] = lambda net, seed, name=name: static(net, "int8", name)
for bits in ("int4", "int2"):
    ARMS[f"{bits} static"] = lambda net, seed, bits=bits: static(net, bits)
    ARMS[f"{bits} static, weights by mse"] = lambda net, seed, bits=bits: static(net, bits, optimizer="mse")
for bits in ("int8", "int4", "int2"):
    ARMS[f"{bits} QAT"] = lambda net, seed, bits=bits: trained(net, bits, seed)
for bits in ("int4", "int2"):
    ARMS[f"{bits} QAT, scales observed"] = lambda net, seed, bits=bits: trained(net, bits, seed, learn=False)
ARMS["int2 QAT, distilled"] = lambda net, seed: trained(net, "int2", seed, distill=True)


def measure(net: nn.Module, arm: str, seed: int) -> float:
    """Percent of the held-out digits that are named right."""
    net = ARMS[arm](copy.deepcopy(net), seed).eval()
    if arm != "float":
        rquant.freeze(net)
    return digits.accuracy(net)


def table(seeds: dict[str, dict[str, float]]) -> str:
    """Markdown: a row an arm."""
    lines = ["| | accuracy, % | to float | each seed |", "|---|---:|---:|---|"]
    for arm in ARMS:
        found = [(done[arm], done[arm] - done["float"]) for done in seeds.values() if arm in done]
        if found:
            mean, off = (statistics.mean(column) for column in zip(*found, strict=True))
            each = ", ".join(f"{accuracy:.1f}" for accuracy, _ in found)
            lines.append(f"| {arm} | {mean:.2f} | {'' if arm == 'float' else f'{off:+.2f}'} | {each} |")
    return "\n".join(lines)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--seeds", type=int, default=3, help="how many nets are trained")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    out = Path(__file__).parent / "results" / "mnist.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON file")
    args = parser.parse_args()
    done = {} if args.fresh or not args.out.exists() else json.loads(args.out.read_text())["seeds"]
    for seed in range(args.seeds):
        records = done.setdefault(str(seed), {})
        left = [arm for arm in ARMS if arm not in records]
        if not left:
            continue
        torch.manual_seed(seed)
        net = digits.Digits()
        digits.train(net, FLOAT_EPOCHS, 1e-2, seed)
        for arm in tqdm(left, desc=f"seed {seed}", leave=False):
            records[arm] = measure(net, arm, seed)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({"machine": describe(), "seeds": done}, indent=1) + "\n")
    print(table(done))


if __name__ == "__main__":
    main()
