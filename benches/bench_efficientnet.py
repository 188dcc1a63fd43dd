"""EfficientNet-Lite0 in static int8: how near its logits stay to float, by the method that chose the ranges.

    make bench-efficientnet

Trained weights and code out of pip packages, both as they come. Its convolutions see photographs packaged in scikit-image
and scikit-learn, cut into squares: those of six photographs to calibrate on, of four others to compare. Samples run once;
ranges are derived of what was seen by each method. `cosine`: of int8 logits to float ones, mean and least over the pictures;
`same first`, `first in 5`: how often float's first class is int8's, or among its five.
"""

import argparse
import copy
import json
import sys
import time
from pathlib import Path

import torch

import rquant

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from machine import describe
from table import print_table
from zoo.vision import efficientnet, photographs

METHODS = ("minmax", "moving_average", "percentile", "mse", "entropy")
HEADER = ("ranges", "zero point", "cosine", "least", "same first", "first in 5", "MB")


def compared(got: torch.Tensor, want: torch.Tensor) -> dict:
    """Of two `[n, classes]`."""
    cosine = torch.cosine_similarity(got, want, dim=1)
    first = want.argmax(1, keepdim=True)
    return {
        "cosine": cosine.mean().item(),
        "least": cosine.min().item(),
        "same_first": (got.argmax(1, keepdim=True) == first).float().mean().item(),
        "first_in_5": (got.topk(5).indices == first).any(1).float().mean().item(),
    }


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "efficientnet.json")
    args = parser.parse_args()
    model = efficientnet.load()
    samples, tests = (efficientnet.pictures(names) for names in (photographs.CALIBRATION, photographs.TEST))
    want = efficientnet.logits(model, tests)

    ready = copy.deepcopy(model)
    rquant.fold_bn(ready, samples[:1])
    float_bytes = sum(t.nbytes for t in ready.state_dict().values())
    rquant.quantize(ready, args.weights, activations="int8")
    calibration = rquant.calibrate(ready, samples.split(8), method="minmax", samples=len(samples))

    records = []
    for symmetric in (False, True):
        for method in METHODS:
            start = time.perf_counter()
            calibration.apply(ready, method, symmetric=symmetric)
            took = time.perf_counter() - start
            net = copy.deepcopy(ready)
            rquant.freeze(net)
            found = compared(efficientnet.logits(net, tests), want)
            size = sum(t.nbytes for t in net.state_dict().values())
            records.append(
                {"method": method, "symmetric": symmetric, **found, "bytes": size, "seconds": took}
            )
    rows = [
        [
            r["method"],
            "0" if r["symmetric"] else "fitted",
            f"{r['cosine']:.4f}",
            f"{r['least']:.4f}",
            *(f"{100 * r[key]:.0f} %" for key in ("same_first", "first_in_5")),
            f"{r['bytes'] / 1e6:.1f}",
        ]
        for r in records
    ]
    title = (
        f"EfficientNet-Lite0, {args.weights} weights, static int8 activations; float32: {float_bytes / 1e6:.1f} MB. "
        f"{len(samples)} squares to calibrate on, {len(tests)} to compare."
    )
    print_table(title, HEADER, rows, left=2)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    part = args.out.with_suffix(".part")
    part.write_text(
        json.dumps({"machine": describe(), "weights": args.weights, "rows": records}, indent=1) + "\n"
    )
    part.replace(args.out)


if __name__ == "__main__":
    main()
