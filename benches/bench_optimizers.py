"""What the choice of scales and zero points does to two real models' quality: each optimizer, int4 and int2.

    python benches/bench_optimizers.py                     # a quarter of an hour on 2 cores; a rerun goes on where it stopped
    python benches/bench_optimizers.py --only minilm       # a minute

SmolLM2-135M: perplexity of news text, weights of Linear layers, the output layer's too. Its weights come out of a 4-bit
file; `rotation.py` first takes them off that file's grid without changing the function. MiniLM: mean and least cosine of
256 sentences' embeddings to float32's. Float arithmetic, frozen layers. `seconds` is what `quantize` and `freeze` took.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe
from rotation import pair_rotation, rotate
from tqdm import tqdm

import rquant

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from zoo import minilm, smollm2, texts

SCHEMES = [("int4", 32), ("int4", 64), ("int2", 32), ("int2", 16)]
OPTIMIZERS = {
    "minmax": "minmax",
    "mse": "mse",
    "hqq": "hqq",
    "hqq, whole range": rquant.optimize.HQQ(range="minmax"),
}
ARMS = [("float32", None, None), ("int8", None, "minmax")]
ARMS += [(weights, group, optimizer) for optimizer in OPTIMIZERS for weights, group in SCHEMES]

Measure = Callable[[torch.nn.Module], dict[str, float]]


def of_smollm2(tokens: int) -> tuple[torch.nn.Module, Measure]:
    """The model off its grid, and its perplexity; the rotation must not change that."""
    model, tokenizer = smollm2.load()
    windows = texts.windows(tokenizer, tokens)
    before = smollm2.perplexity(model, windows[:1])
    rotate(model, pair_rotation(model.config.hidden_size))
    after = smollm2.perplexity(model, windows[:1])
    if abs(after / before - 1) > 1e-3:
        raise ValueError(f"rotating changed the perplexity from {before} to {after}")
    return model, lambda m: {"perplexity": smollm2.perplexity(m, windows)}


def of_minilm(count: int) -> tuple[torch.nn.Module, Measure]:
    """The model, and the cosine of `count` sentences to those of float32."""
    model, tokenize = minilm.load()
    sentences = texts.sentences(count)
    want = minilm.embed(model, tokenize, sentences)

    def cosine(m: torch.nn.Module) -> dict[str, float]:
        found = (minilm.embed(m, tokenize, sentences) * want).sum(-1)
        return {"cosine": found.mean().item(), "least": found.min().item()}

    return model, cosine


def name_of(arm: tuple) -> str:
    weights, group, optimizer = arm
    return " ".join(str(part) for part in (weights, group and f"g{group}", optimizer) if part)


def run(model: torch.nn.Module, measure: Measure, arm: tuple) -> dict[str, float]:
    """One arm's figures."""
    weights, group, optimizer = arm
    if optimizer is None:
        return measure(model)
    copied = copy.deepcopy(model)
    start = time.perf_counter()
    rquant.quantize(copied, weights, group_size=group, optimizer=OPTIMIZERS[optimizer])
    rquant.freeze(copied)
    seconds = time.perf_counter() - start
    return {**measure(copied), "seconds": seconds}


def table(records: dict[str, dict[str, float]], figure: str, digits: int) -> str:
    """Markdown: a row an optimizer, a column a scheme."""
    heads = [f"{weights} g{group}" for weights, group in SCHEMES]
    lines = [f"| {figure} | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for optimizer in OPTIMIZERS:
        cells = (records.get(f"{head} {optimizer}", {}).get(figure) for head in heads)
        lines.append(
            f"| {optimizer} | " + " | ".join("" if c is None else f"{c:,.{digits}f}" for c in cells) + " |"
        )
    others = [name for name in ("float32", "int8 minmax") if figure in records.get(name, {})]
    lines.append("\n" + ", ".join(f"{name} {records[name][figure]:,.{digits}f}" for name in others))
    return "\n".join(lines)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--tokens", type=int, default=2048, help="least length of the perplexity text")
    parser.add_argument("--only", choices=["minilm", "smollm2"], help="one of the two models")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    out = Path(__file__).parent / "results" / "optimizers.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON file")
    args = parser.parse_args()
    done = {} if args.fresh or not args.out.exists() else json.loads(args.out.read_text())["models"]
    for name, make, size in (("minilm", of_minilm, 256), ("smollm2", of_smollm2, args.tokens)):
        records = done.setdefault(name, {})
        left = [arm for arm in ARMS if name_of(arm) not in records]
        if args.only not in (None, name) or not left:
            continue
        model, measure = make(size)
        for arm in tqdm(left, desc=name, leave=False):
            records[name_of(arm)] = run(model, measure, arm)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({"machine": describe(), "models": done}, indent=1) + "\n")
    for name, figure, digits in (
        ("minilm", "cosine", 4),
        ("minilm", "least", 4),
        ("smollm2", "perplexity", 2),
    ):
        print(f"\n{name}\n\n{table(done[name], figure, digits)}")


if __name__ == "__main__":
    main()
