"""Weight quantization from the start, on a real language model: what absmax, zero-point and LLM.int8() do to it.

    python examples/walkthrough.py                      # SmolLM2-135M; some minutes
    python examples/walkthrough.py --out pictures --tokens 1024
    python examples/walkthrough.py --model FOLDER       # a model folder of your own

Sizes, one layer's codes, copies of the model with every parameter rounded, histograms before and after (PNG and numbers),
what the copies write, and their perplexity. Tables go to standard output, pictures and figures.json to --out.
"""

import argparse
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from table import print_table
from torch import Tensor, nn
from zoo import smollm2, texts

import rquant
from rquant import evaluate, viz
from rquant.nn import PackedWeight

PROMPT = "I have a dream"
THRESHOLD = 6.0  # of LLM.int8(): activations of at least this size stay float
ROUNDINGS = {"absmax": rquant.absmax_quantize, "zeropoint": rquant.zeropoint_quantize}
LLM_INT8 = "LLM.int8()"


def first_layer(model: nn.Module) -> tuple[str, Tensor]:
    """Name and weight of the first linear layer."""
    layers = (
        (n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"
    )
    name, layer = next(layers)
    return name, layer.weight.detach()


def show_codes(model: nn.Module) -> None:
    """A corner of one weight, and its int8 codes by both schemes."""
    name, weight = first_layer(model)
    shown = {"float": weight} | {scheme: quantize(weight)[0] for scheme, quantize in ROUNDINGS.items()}
    for scheme, values in shown.items():
        corner = values[:3, :6].tolist()
        rows = [[f"{v:.4f}" if scheme == "float" else str(v) for v in row] for row in corner]
        print_table(f"{name}, {scheme}", [str(i) for i in range(len(rows[0]))], rows, 0)


def rounded(model: nn.Module) -> dict[str, nn.Module]:
    """A deep copy for each scheme, every parameter of which became what its int8 codes stand for."""
    return {scheme: rquant.simulate_(copy.deepcopy(model), scheme) for scheme in ROUNDINGS}


def llm_int8(model: nn.Module) -> nn.Module:
    """Vector-wise int8 with float columns where an activation reaches the threshold; embeddings and head stay float.

    Dettmers et al. 2022, <https://arxiv.org/abs/2208.07339>.
    """
    small = copy.deepcopy(model)
    rquant.quantize(small, "int8", activations="int8", outliers=THRESHOLD, exclude="lm_head")
    rquant.freeze(small)
    return small


def weights_of(model: nn.Module) -> Iterator[Tensor]:
    """Every weight as a float tensor, packed ones dequantized."""
    yield from (p for p in model.parameters() if p.numel())
    yield from (m.dequantize() for m in model.modules() if isinstance(m, PackedWeight))


def show_sizes(model: nn.Module, small: nn.Module) -> dict[str, int]:
    """Bytes: as it is, what the two schemes would store, and LLM.int8() as it lies in memory."""
    parameters = list(model.parameters())
    count = sum(p.numel() for p in parameters)
    sizes = {
        "original": evaluate.resident_bytes(model),
        "absmax": count + 4 * len(parameters),
        "zeropoint": count + 5 * len(parameters),
        LLM_INT8: evaluate.resident_bytes(small),
    }
    notes = {
        "original": "float32",
        "absmax": "a code a parameter, a float32 scale a tensor",
        "zeropoint": "and a zero point",
        LLM_INT8: "a scale a row; embeddings and norms in float32",
    }
    rows = [[name, notes[name], f"{n:,}", f"{sizes['original'] / n:.2f}x"] for name, n in sizes.items()]
    print_table(f"Sizes of {count:,} parameters", ["model", "stored", "bytes", "smaller"], rows, 2)
    return sizes


def show_histograms(models: dict[str, nn.Module], out: Path) -> dict[str, Any]:
    """Weights from -2 to 2 before and after: a picture for each model but the first, and numbers."""
    found = {name: viz.histogram(weights_of(model)) for name, model in models.items()}
    original = found["original"]
    rows = []
    for name, h in found.items():
        rows.append(
            [
                name,
                f"{h.least:.3f}",
                f"{h.most:.3f}",
                f"{h.std:.4f}",
                f"{h.zeros / h.count:.2%}",
                f"{h.peak:.2%}",
                f"{h.overlap(original):.4f}",
            ]
        )
        if h is not original:
            file = out / f"weights-{''.join(c for c in name if c.isalnum())}.png"
            file.write_bytes(viz.png(viz.draw_histograms(original, {name: h})))
    header = ["model", "least", "most", "std", "zeros", "fullest bin", "overlap"]
    print_table(f"Weights; {len(original.counts)} bins over [-2, 2]; pictures in {out}", header, rows)
    return {name: h.to_dict() for name, h in found.items()}


def write(model: nn.Module, tokenizer: Any, length: int) -> Tensor:
    """Ids `[1, tokens]` of what the model makes of the prompt: top-30 sampling, the same seed for every model."""
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    torch.manual_seed(0)
    return model.generate(
        inputs=ids,
        attention_mask=torch.ones_like(ids),
        max_length=length,
        do_sample=True,
        top_k=30,
        pad_token_id=tokenizer.eos_token_id,
    )


def show_texts(models: dict[str, nn.Module], tokenizer: Any, length: int) -> dict[str, Tensor]:
    """What each model writes."""
    written = {name: write(model, tokenizer, length) for name, model in models.items()}
    for name, ids in written.items():
        print(f"\n{name}:\n  {' '.join(tokenizer.decode(ids[0], skip_special_tokens=True).split())}")
    return written


def show_perplexity(
    models: dict[str, nn.Module], written: dict[str, Tensor], windows: Tensor
) -> dict[str, dict[str, float]]:
    """Each model on what it wrote itself, which says how sure of itself it is; on what the original wrote; on fixed text."""
    fixed = evaluate.compare(models, windows, models["original"])
    found = {
        name: {
            "own_text": evaluate.perplexity(model, written[name]),
            "original_text": evaluate.perplexity(model, written["original"]),
            "fixed_text": fixed[name].perplexity,
            "change": fixed[name].perplexity / fixed["original"].perplexity - 1,
            "kl": fixed[name].agreement.kl,
            "top1": fixed[name].agreement.top1,
        }
        for name, model in models.items()
    }
    # As this experiment is often told, zero-point is measured on absmax's text by mistake.
    mistaken = found["zeropoint"]["absmax_text"] = evaluate.perplexity(models["zeropoint"], written["absmax"])
    shown = ("{:.2f}", "{:.2f}", "{:.2f}", "{:+.2%}", "{:.4f}", "{:.1%}")
    rows = [
        [name, *(form.format(value) for form, value in zip(shown, row.values(), strict=False))]
        for name, row in found.items()
    ]
    header = ["model", "own text", "original's text", "fixed text", "change", "KL", "same top 1"]
    print_table(
        f"Perplexity; fixed text: {windows.numel()} tokens in windows of {windows.shape[1]}", header, rows
    )
    print(f"\nzeropoint on the text that absmax wrote: {mistaken:.2f}")
    print("Only the columns of a text that is the same for all tell which model is better.")
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model", help="a model folder; default: SmolLM2 from its package")
    parser.add_argument(
        "--out", type=Path, default=Path("walkthrough"), help="folder of pictures and figures"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="length of the fixed text (%(default)s)")
    parser.add_argument("--window", type=int, default=512, help="tokens of a window (%(default)s)")
    parser.add_argument(
        "--length", type=int, default=50, help="tokens written, the prompt's included (%(default)s)"
    )
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.model:
        loaded = evaluate.load_pretrained(args.model)
        model, tokenizer = loaded.model, loaded.tokenizer
    else:
        model, tokenizer = smollm2.load()
    windows = texts.windows(tokenizer, args.tokens, args.window)
    show_codes(model)
    models = {"original": model, **rounded(model), LLM_INT8: llm_int8(model)}
    figures = {
        "bytes": show_sizes(model, models[LLM_INT8]),
        "histograms": show_histograms(models, args.out),
    }
    written = show_texts(models, tokenizer, args.length)
    figures["perplexity"] = show_perplexity(models, written, windows)
    figures["texts"] = {name: tokenizer.decode(ids[0]) for name, ids in written.items()}
    (args.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
