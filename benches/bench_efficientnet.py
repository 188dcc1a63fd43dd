"""EfficientNet-Lite0 in static int8: how near its logits stay to float, by the method that chose the ranges.

    make bench-efficientnet

Trained weights and code out of pip packages, both as they come. Its convolutions see photographs packaged in scikit-image
and scikit-learn, cut into squares: those of six photographs to calibrate on, of four others to compare. Samples run once;
ranges are derived of what was seen by each method. `cosine`: of int8 logits to float ones, mean and least over the pictures;
`same first`, `first in 5`: how often float's first class is int8's, or among its five.

Most of what is lost is lost in the weights of one layer, the first depthwise one, whose channels have single large values
once BatchNorm is folded into them. `groups of 3` gives that layer a scale for each row of its 3x3 filters.
"""

import argparse
import copy
import json
import sys
from pathlib import Path

import torch

import rquant

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from machine import describe
from table import print_table
from zoo.vision import efficientnet, photographs

METHODS = ("minmax", "moving_average", "percentile", "mse", "entropy")
FIRST_DEPTHWISE = ("_blocks.0._depthwise_conv", {"weights": "int8", "activations": "int8", "group_size": 3})
SCHEMES = (("a channel", "fitted", []), ("a channel", "0", []), ("groups of 3", "fitted", [FIRST_DEPTHWISE]))
HEADER = ("scales", "zero point", "ranges", "cosine", "least", "same first", "first in 5", "MB")


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
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "efficientnet.json")
    args = parser.parse_args()
    model = efficientnet.load()
    samples, tests = (efficientnet.pictures(names) for names in (photographs.CALIBRATION, photographs.TEST))
    want = efficientnet.logits(model, tests)

    folded = copy.deepcopy(model)
    rquant.fold_bn(folded, samples[:1])
    float_bytes = sum(t.nbytes for t in folded.state_dict().values())

    records = []
    for scales, zero, rules in SCHEMES:
        ready = copy.deepcopy(folded)
        rquant.quantize(ready, "int8", activations="int8", rules=rules)
        calibration = rquant.calibrate(ready, samples.split(8), method="minmax", samples=len(samples))
        for method in METHODS:
            calibration.apply(ready, method, symmetric=zero == "0")
            net = copy.deepcopy(ready)
            rquant.freeze(net)
            found = compared(efficientnet.logits(net, tests), want)
            size = sum(t.nbytes for t in net.state_dict().values())
            records.append({"scales": scales, "zero_point": zero, "method": method, **found, "bytes": size})
    rows = [
        [
            *(r[key] for key in ("scales", "zero_point", "method")),
            *(f"{r[key]:.4f}" for key in ("cosine", "least")),
            *(f"{100 * r[key]:.0f} %" for key in ("same_first", "first_in_5")),
            f"{r['bytes'] / 1e6:.1f}",
        ]
        for r in records
    ]
    title = (
        f"EfficientNet-Lite0, int8 weights, static int8 activations; float32: {float_bytes / 1e6:.1f} MB. "
        f"{len(samples)} squares to calibrate on, {len(tests)} to compare."
    )
    print_table(title, HEADER, rows, left=3)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    part = args.out.with_suffix(".part")
    part.write_text(json.dumps({"machine": describe(), "rows": records}, indent=1) + "\n")
    part.replace(args.out)


if __name__ == "__main__":
    main()
