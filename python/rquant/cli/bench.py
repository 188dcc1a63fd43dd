"""`rquant bench`: perplexity and milliseconds a token of a language model, scheme by scheme."""

import argparse
from typing import Any

from . import _models

SCHEMES = ["int8", "int8,activations=int8", "int4", "int4,activations=int8"]


def add_parser(subparsers: Any) -> None:
    """Declare the arguments."""
    text = "perplexity and milliseconds a token, scheme by scheme"
    parser = subparsers.add_parser(
        "bench",
        help=text,
        description=f"A language model: {text}. The schemes take turns, so that what else the machine does hits all alike.",
    )
    _models.add_arguments(parser, f"may be repeated; default: {' '.join(SCHEMES)}")
    parser.add_argument("--prompt", type=_models.positive, default=512, help="tokens read (%(default)s)")
    parser.add_argument("--generate", type=_models.positive, default=512, help="tokens written (%(default)s)")
    parser.add_argument(
        "--rounds", type=_models.positive, default=5, help="times the prompt is read (%(default)s)"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the figures there")


def run(args: argparse.Namespace) -> int:
    """0."""
    _models.check_outputs(args.json, args.plot)
    from .. import evaluate
    from ..io.atomic import write_file
    from ..viz import draw_bars, png, require_matplotlib

    if args.plot:
        require_matplotlib()  # now, not after the work
    loaded = _models.load(args.model)
    if not loaded.causal:
        raise ValueError(f"MODEL: expected a language model, got {type(loaded.model).__name__}")
    models = _models.models(loaded, args.scheme or ([] if loaded.quantized else SCHEMES))
    text = _models.read_text(args)
    windows = _models.windows(args, text, loaded.tokenizer)
    prompt = text.tokens(loaded.tokenizer, args.prompt)[None]
    if prompt.shape[1] < args.prompt:
        raise ValueError(
            f"--prompt: expected at most the {prompt.shape[1]} tokens of {text.name!r}, got {args.prompt}"
        )
    outcome = evaluate.bench(
        models,
        windows,
        prompt,
        args.generate,
        rounds=args.rounds,
        model_name=loaded.name,
        settings={"text": text.name, "text_sha256": text.sha256},
    )
    if args.plot:
        write_file(args.plot, png(draw_bars(outcome.bars())))
    _models.show(outcome, args.json)
    return 0
