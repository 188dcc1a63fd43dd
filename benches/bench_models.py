"""Whole language models, end to end: tokens a second of torch, rquant and llama.cpp on the same weights.

    python benches/bench_models.py --threads 2                     # SmolLM2-135M and 1.1 billion random weights
    python benches/bench_models.py --models smollm2-135m --arms "float32,int8 a8,Q8_0" --rounds 1 --out /tmp/x.json

Batch 1. Prefill: 256 tokens at once, from nothing. Decode: one token after another after a prompt of 64, the tokens
given, not sampled. The arms take turns; a figure is the median over the rounds. Before that each arm's logits of 64
tokens are held against torch float32's: the mean cosine must reach 0.99 for weights of 8 bits and more (0.98 with int8
activations) and 0.7 for 4 bits; and the last token decoded must give what the prefill gave. An arm that fails is named,
not timed, and the exit status is 1.

`x float32`: times faster than torch in float32. `x llama.cpp`: than llama.cpp's fastest with as many bits a weight.
`lean decode`: half as many tokens, with only the model's blocks called, not what transformers does around them.
`linear layers`: the time of all linear layers called one after the other with one row, as a share of a decoded token.

The larger model takes 12 GB of memory, besides files that are mapped. GGUF files, 5.3 GB in all, are kept in the folder
`--cache`. Without llama-cpp-python its arms are named as absent and the others timed.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import torch
from models import arms, report, turns
from models.sources import SOURCES
from tqdm import tqdm

import rquant


def measure(source: str, specs: list[arms.Spec], args: argparse.Namespace) -> dict:
    """Make the arms of one model, check them, time those that pass, and let go of them."""
    length = max(*args.prefill, args.prompt + args.decode)
    with tqdm(total=len(specs), desc=f"{source}: building", leave=False) as bar, torch.inference_mode():
        model, tokens = SOURCES[source](length)
        asked = tokens[: arms.CHECKED]
        want = model(input_ids=asked[None], use_cache=False).logits[0]
        records, ready = [], {}
        for spec, arm in arms.made(model, source, specs, args.cache, length, args.threads):
            bar.update()
            record = {"name": spec.title, "bits": spec.bits}
            records.append(record)
            if isinstance(arm, Exception):
                record["error"] = f"{type(arm).__name__}: {arm}"
                continue
            bar.set_description(f"{source}: checking {spec.title}")
            checked = arms.check(arm, asked, want)
            record |= {"bytes": arm.bytes, **dataclasses.asdict(checked)}
            if error := checked.error(spec.least):
                record["error"] = error
                arm.close()
            else:
                ready[spec.title] = arm
    with tqdm(total=args.rounds * len(ready), desc=f"{source}: timing", leave=False) as bar:

        def take(arm, samples) -> None:
            turns.turn(arm, tokens, args.prompt, args.decode, args.prefill, samples)
            bar.update()

        found = turns.rounds(ready, args.rounds, args.seconds, take)
    for record in records:
        record.update(found.get(record["name"], {}))
    for arm in ready.values():
        arm.close()
    return {"parameters": sum(p.numel() for p in model.parameters()), "arms": records}


def arguments() -> argparse.Namespace:
    """The command line, taken apart."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--models", default=",".join(SOURCES))
    parser.add_argument(
        "--arms", default=arms.DEFAULT, help=f"default: {arms.DEFAULT}; also F32, int4 g128, int2 g32"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every arm")
    parser.add_argument("--rounds", type=int, default=5, help="the most rounds")
    parser.add_argument(
        "--seconds", type=float, default=360, help="no more rounds of a model than fit into these"
    )
    parser.add_argument("--prefill", type=numbers, default=[256], help="tokens; several with commas")
    parser.add_argument("--prompt", type=int, default=64, help="tokens before those that are decoded")
    parser.add_argument("--decode", type=int, default=32, help="tokens decoded a turn")
    cache = Path(tempfile.gettempdir()) / "rquant-bench-models"
    parser.add_argument(
        "--cache", type=Path, default=cache, help=f"folder of the GGUF files (default: {cache})"
    )
    parser.add_argument("--out", type=Path, help="JSON file instead of one in benches/results/")
    args = parser.parse_args()
    args.models = args.models.split(",")
    if unknown := set(args.models) - set(SOURCES):
        parser.error(f"--models: {unknown} not in {list(SOURCES)}")
    try:
        args.specs = [arms.Spec.of(name.strip()) for name in args.arms.split(",")]
    except ValueError as error:
        parser.error(f"--arms: {error}")
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    rquant.set_num_threads(args.threads)
    record = {
        "machine": report.machine(),
        "threads": args.threads,
        "prompt": args.prompt,
        "decode": args.decode,
    }
    for key, value in record["machine"].items():
        print(f"{key}: {value}")
    record["models"] = {}
    for source in args.models:
        record["models"][source] = model = measure(source, args.specs, args)
        print(f"\n### {source}, {model['parameters'] / 1e6:,.0f} million weights, threads: {args.threads}\n")
        print(report.table(model), flush=True)
    out = args.out or Path(__file__).parent / "results" / f"models-{args.threads}t.json"
    report.save(record, out)
    print(f"\nwritten: {out}")
    every = [arm for model in record["models"].values() for arm in model["arms"]]
    sys.exit(any("check failed" in arm.get("error", "") for arm in every))


if __name__ == "__main__":
    main()
