"""`rquant eval`: how good a model is, and its quantized twins beside it."""

import argparse
from typing import Any

from . import _models

SENTENCES, BATCH, SHOWN = 256, 16, 8


def add_parser(subparsers: Any) -> None:
    """Declare the arguments."""
    text = "perplexity, agreement with the float model, and each layer's error"
    parser = subparsers.add_parser(
        "eval",
        help=text,
        description=f"How good a model is: {text}. An encoder: cosines of its sentence vectors to the float model's.",
    )
    _models.add_arguments(parser, "may be repeated")
    parser.add_argument(
        "--against", metavar="FLOAT", help="the float model's folder, where MODEL is quantized"
    )
    parser.add_argument(
        "--given",
        type=_models.positive,
        default=1,
        help="tokens of a window that are not scored (%(default)s)",
    )
    parser.add_argument("--no-layers", action="store_true", help="leave the layers' errors out")
    parser.add_argument("--report", metavar="FILE.html", help="write a page with pictures there")


def run(args: argparse.Namespace) -> int:
    """0."""
    _models.check_outputs(args.json, args.report)
    from .. import evaluate
    from ..io.atomic import write_file
    from ..viz import require_matplotlib

    if args.report:
        require_matplotlib()  # now, not after the work
    loaded = _models.load(args.model)
    if args.against:
        if not loaded.quantized or args.scheme:
            raise ValueError("--against: expected a quantized MODEL and no --scheme")
        models = {"float": _models.load(args.against).model, loaded.name: loaded.model}
    else:
        models = _models.models(loaded, args.scheme)
    text = _models.read_text(args)
    settings = {"text": text.name, "text_sha256": text.sha256}
    common: dict[str, Any] = {"model_name": loaded.name, "layers": not args.no_layers, "settings": settings}
    reference = "float" if len(models) > 1 else None
    if loaded.causal:
        windows = _models.windows(args, text, loaded.tokenizer)
        outcome = evaluate.language(models, windows, reference, given=args.given, **common)
    elif reference is None:
        raise ValueError("MODEL: an encoder is compared: give --scheme or --against")
    else:
        sentences = text.sentences(SENTENCES)
        batches = [
            dict(
                loaded.tokenizer(sentences[i : i + BATCH], padding=True, truncation=True, return_tensors="pt")
            )
            for i in range(0, len(sentences), BATCH)
        ]
        outcome = evaluate.encoder(models, batches, reference, **common)
    if args.report:
        write_file(args.report, evaluate.html_report(outcome))
    _models.show(outcome, args.json)
    if args.json != "-":
        for name, found in outcome.layers.items():
            print(f"\n{name}: the worst of {len(found.rows)} layers\n\n{found.table(SHOWN)}")
            if found.unmatched:
                print(
                    f"not compared, for the float model holds them otherwise: {len(found.unmatched)} layers"
                )
    return 0
