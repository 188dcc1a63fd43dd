"""The main job: two real models in float32, int8, int4 and int2, measured beside torch float32 in one run.

    python examples/demo.py                  # about 3 minutes on 2 cores
    python examples/demo.py --tokens 20000   # perplexity on more text (`make eval`)
    python examples/demo.py --only minilm

Tables go to standard output, progress bars to standard error.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from measure import interleaved, resident_bytes
from schemes import FLOAT, SCHEMES, Scheme, packed
from table import print_table
from tqdm import tqdm
from zoo import minilm, smollm2, texts

import rquant
from rquant import evaluate

PROMPT = "Write one sentence about the sea."
WRITTEN, CHUNK = 40, 8  # tokens a model writes, and tokens a turn
PREFILL = 256  # tokens of prompt that prefill speed is measured on


def pack_all(model: torch.nn.Module, skeleton, bar: tqdm) -> tuple[dict, dict]:
    """Each scheme's model, and each scheme's bytes on disk."""
    models, disk = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for scheme in SCHEMES:
            bar.set_description(f"packing {scheme}")
            models[scheme], disk[scheme] = packed(model, scheme, skeleton, Path(folder))
            bar.update()
    return models, disk


def sizes(scheme: Scheme, model: torch.nn.Module, disk: int) -> list[str]:
    """The columns that both tables begin with."""
    return [scheme.label, scheme.arithmetic, f"{disk / 1e6:.1f}", f"{resident_bytes(model) / 1e6:.1f}"]


SIZES = ["weights", "arithmetic", "disk MB", "memory MB"]


def show_minilm(rounds: int = 7, batch: int = 32, compared: int = 256) -> None:
    """Embeddings: milliseconds a batch, and how near they stay to those of float32."""
    model, tokenize = minilm.load()
    sentences = texts.sentences(compared)
    items, scores = texts.judged()
    inputs = tokenize(sentences[:batch])
    with tqdm(total=len(SCHEMES) * (rounds + 3), leave=False) as bar, torch.inference_mode():
        models, disk = pack_all(model, minilm.skeleton, bar)
        bar.set_description("timing")
        runs = {scheme: lambda m=m: m(**inputs) for scheme, m in models.items()}
        seconds = interleaved(runs, rounds, bar.update)
        embeddings, agreement = {}, {}
        for scheme, m in models.items():
            bar.set_description(f"quality of {scheme}")
            embeddings[scheme] = minilm.embed(m, tokenize, sentences)
            agreement[scheme] = texts.agreement(minilm.embed(m, tokenize, items), scores)
            bar.update()
    rows = []
    for scheme, m in models.items():
        cosine = (embeddings[scheme] * embeddings[FLOAT]).sum(-1)
        rows.append(
            [
                *sizes(scheme, m, disk[scheme]),
                f"{seconds[scheme] * 1e3:.1f}",
                f"{seconds[FLOAT] / seconds[scheme]:.2f}x",
                f"{cosine.mean():.4f}",
                f"{cosine.min():.4f}",
                f"{agreement[scheme]:.3f}",
            ]
        )
    shape = "x".join(map(str, inputs["input_ids"].shape))
    header = [*SIZES, "ms/batch", "speed", "mean cosine", "least", "with people"]
    title = f"MiniLM: a batch of {shape} tokens; cosine to float32 over {compared} sentences"
    print_table(title, header, rows, 2)
    print(
        "\n'with people': correlation of the cosines of 50 news items with how alike people found them."
        f"\nint2 here is plain rounding, 4 levels a weight: {rows[-2][6]} mean cosine is what it gives."
    )


def change(ratio: float) -> str:
    """A ratio as a reader takes it in best."""
    return f"{100 * (ratio - 1):+.2f} %" if ratio < 10 else f"{ratio:,.0f} times"


def show_smollm2(tokens: int, rounds: int = 3) -> None:
    """A language model: speed of reading and of writing, perplexity, and what it writes."""
    model, tokenizer = smollm2.load()
    windows = texts.windows(tokenizer, tokens)
    chat = [{"role": "user", "content": PROMPT}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    turns = WRITTEN // CHUNK
    total = len(SCHEMES) * (1 + rounds + 1 + turns + 2)
    with tqdm(total=total, leave=False) as bar, torch.inference_mode():
        models, disk = pack_all(model, smollm2.skeleton, bar)
        bar.set_description("timing")
        read = {s: lambda m=m: m(windows[:1, :PREFILL], logits_to_keep=1) for s, m in models.items()}
        reading = interleaved(read, rounds, bar.update)
        writers = {s: smollm2.Writer(m, prompt) for s, m in models.items()}
        write = {s: lambda w=w: w.write(CHUNK) for s, w in writers.items()}
        writing = interleaved(write, turns, bar.update)
        perplexity = {}
        for scheme, m in models.items():
            bar.set_description(f"perplexity of {scheme}")
            perplexity[scheme] = evaluate.perplexity(m, windows)
            bar.update()
    rows = [
        [
            *sizes(scheme, m, disk[scheme]),
            f"{PREFILL / reading[scheme]:.0f}",
            f"{reading[FLOAT] / reading[scheme]:.2f}x",
            f"{CHUNK / writing[scheme]:.1f}",
            f"{writing[FLOAT] / writing[scheme]:.2f}x",
            f"{perplexity[scheme]:,.2f}",
            change(perplexity[scheme] / perplexity[FLOAT]),
        ]
        for scheme, m in models.items()
    ]
    header = [*SIZES, "prefill tok/s", "speed", "decode tok/s", "speed", "perplexity", "change"]
    title = f"SmolLM2-135M: prefill of {PREFILL} tokens, greedy decoding with a key-value cache"
    print_table(title, header, rows, 2)
    print(
        f"\nPerplexity of {windows.numel()} tokens of news in {len(windows)} windows of {windows.shape[1]}."
        "\n'float32' is the model's file expanded: 4-bit groups of 32 with a fractional minimum (GGUF Q4_1) and"
        "\nan 8-bit embedding. int4 here has integer zero points, a 4-bit embedding too: it rounds once more."
        f"\nint2 here is plain rounding, 4 levels a weight: perplexity {rows[-2][8]} is what it gives."
    )
    print(f"\n{PROMPT}")
    for scheme, writer in writers.items():
        print(f"  {scheme}: {smollm2.answer(tokenizer, writer.tokens)}")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--tokens", type=int, default=4096, help="least length of the perplexity text")
    parser.add_argument("--only", choices=["minilm", "smollm2"], help="one of the two models")
    args = parser.parse_args()
    print("\n".join(f"{key}: {value}" for key, value in rquant.backend_info().items()))
    if args.only != "smollm2":
        show_minilm()
    if args.only != "minilm":
        show_smollm2(args.tokens)


if __name__ == "__main__":
    main()
