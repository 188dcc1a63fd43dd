"""LLM.int8() beside plain int8: time and error of one layer, and perplexity of SmolLM2.

    python benches/bench_outliers.py                      # a 4096x4096 layer, 1 and 512 rows; a minute
    python benches/bench_outliers.py --perplexity 4096    # SmolLM2 on 4096 tokens of news; minutes

The layer's input is normal, but for 0.5 % of its columns, which are 60 times as large. `threshold` finds these in each
call (outliers=6.0) and dequantizes their weights, `columns` has them fixed, with float weights. Weights are uniform, as
torch begins, or normal. Times are of weights from memory, in turns, medians and least; errors are relative, in the 2-norm,
to float64. In the perplexity table `columns` are those that reach the threshold in text that is not measured.
"""

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import torch
from cells import timed
from turns import Turn, take_turns

import rquant

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from table import print_table
from zoo import smollm2, texts

SIZE, SHARE, LARGE, THRESHOLD = 4096, 0.005, 60.0, 6.0
COPIES = 3  # of a layer, so that its weights come from memory


def measure_layer(
    weight: torch.Tensor, kind: str, m: int, seconds: float, sweep: np.ndarray
) -> list[list[str]]:
    """A row of the table for each arm."""
    linear = torch.nn.Linear(SIZE, SIZE)
    linear.weight.data = weight
    columns = torch.randperm(SIZE)[: round(SHARE * SIZE)].tolist()
    x = torch.randn(m, SIZE)
    x[:, columns] *= LARGE
    exact = x.double() @ weight.double().T + linear.bias.double()
    turns, errors = {}, {}
    for name, outliers in (("plain", None), ("threshold", THRESHOLD), ("columns", columns)):
        layer = rquant.Linear.from_float(linear, activations="int8", outliers=outliers)
        layers = [layer, *(copy.deepcopy(layer) for _ in range(COPIES - 1))]
        runs = [lambda layer=layer: layer(x) for layer in layers]
        runs[0]()
        first, y = timed(runs[0])
        errors[name] = ((y - exact).norm() / exact.norm()).item()
        turns[name] = Turn(runs, cold=True, first=first)
    take_turns(turns, seconds, sweep)
    results = {name: turn.result() for name, turn in turns.items()}
    rows = []
    for name, result in results.items():
        ratios = (result[key] / results["plain"][key] for key in ("median_us", "min_us"))
        time = f"{result['median_us'] / 1e3:.2f}"
        below = f"{errors['plain'] / errors[name]:.1f}x"
        rows.append([kind, str(m), name, time, *(f"{r:.2f}" for r in ratios), f"{errors[name]:.5f}", below])
    return rows


def measure_perplexity(tokens: int, thresholds: list[float]) -> list[list[str]]:
    """A row of the table for each way to quantize SmolLM2's linear layers."""
    model, tokenizer = smollm2.load()
    windows = texts.windows(tokenizer, tokens)
    others = texts.windows(tokenizer, tokens + 4 * windows.shape[1])[len(windows) :]
    floating = smollm2.perplexity(model, windows)
    rows = [["float32", "", f"{floating:.3f}", "", ""]]
    arms = [(None, None, False), ("int8", None, False)]
    arms += [("int8", threshold, False) for threshold in thresholds] + [("int8", thresholds[0], True)]
    plain = 0.0
    for activations, outliers, fixed in arms:
        packed = copy.deepcopy(model)
        rquant.quantize(packed, "int8", activations, outliers=outliers)
        if fixed:
            with rquant.record_outliers(packed), torch.no_grad():
                for window in others:
                    packed(input_ids=window[None], use_cache=False)
        rquant.freeze(packed)
        loss = smollm2.perplexity(packed, windows) / floating - 1
        plain = loss if activations and not outliers else plain
        name = (
            "int8 weights" if activations is None else "int8, plain" if outliers is None else "int8, outliers"
        )
        chosen = "" if outliers is None else f"{outliers}, columns fixed" if fixed else str(outliers)
        share = f"{loss / plain:.0%}" if outliers else ""
        rows.append([name, chosen, f"{floating * (1 + loss):.3f}", f"{100 * loss:+.2f} %", share])
    return rows


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rows", default="1,512")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=6.0, help="of each layer and number of rows")
    parser.add_argument("--perplexity", type=int, metavar="TOKENS", help="of SmolLM2, instead of one layer")
    parser.add_argument("--thresholds", default="6.0,4.0,3.0,2.0")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.perplexity:
        header = ["SmolLM2-135M", "threshold", "perplexity", "loss", "of plain"]
        rows = measure_perplexity(args.perplexity, [float(t) for t in args.thresholds.split(",")])
        return print_table(f"Perplexity of {args.perplexity} tokens of news", header, rows, 2)
    sweep = np.zeros(8_000_000)
    weights = {
        "uniform": torch.nn.Linear(SIZE, SIZE).weight.data,
        "normal": torch.randn(SIZE, SIZE) / SIZE**0.5,
    }
    with torch.no_grad():
        rows = [
            row
            for kind, weight in weights.items()
            for m in map(int, args.rows.split(","))
            for row in measure_layer(weight, kind, m, args.seconds, sweep)
        ]
    header = ["weights", "rows", "int8", "ms", "to plain", "least", "error", "below plain"]
    print_table(
        f"{SIZE}x{SIZE}, {SHARE:.1%} of columns x{LARGE:.0f}, {args.threads} threads", header, rows, 3
    )


if __name__ == "__main__":
    main()
