"""What `eval` and `bench` share: their arguments, and the models and the text that these name."""

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser, schemes: str) -> None:
    """Model, schemes, text, files."""
    parser.add_argument("model", metavar="MODEL", help="a model folder (config.json, tokenizer, weights)")
    parser.add_argument(
        "--scheme",
        action="append",
        default=[],
        metavar="TYPE[,OPTION=VALUE...]",
        help=f"a way to quantize, with options of rquant.quantize: int4,group_size=32,activations=int8; {schemes}",
    )
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text; default: prose of Python's documentation")
    parser.add_argument(
        "--tokens", type=positive, default=4096, help="least length of the text (%(default)s)"
    )
    parser.add_argument("--window", type=positive, default=512, help="tokens of a window (%(default)s)")
    parser.add_argument(
        "--json", metavar="FILE", help="write the figures there, - for standard output instead of a table"
    )


def positive(text: str) -> int:
    """An argument's type: an integer >= 1."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text!r}")
    return value


def check_outputs(*files: str | None) -> None:
    """Raises ValueError now for what could not be written after an hour's work."""
    for file in files:
        if file not in (None, "-") and not Path(str(file)).absolute().parent.is_dir():
            raise ValueError(f"{file}: expected a file in a folder that is there")


def read_text(args: argparse.Namespace) -> Any:
    """The text that `--text` names, or the built-in one."""
    from .. import evaluate

    return evaluate.read_text(args.text) if args.text else evaluate.builtin_text()


def windows(args: argparse.Namespace, text: Any, tokenizer: Any) -> Any:
    """At least `--tokens` tokens of the text in windows of `--window`. Raises ValueError where the text is too short."""
    from .. import evaluate

    count = -(-args.tokens // args.window)
    tokens = text.tokens(tokenizer, count * args.window)
    if len(tokens) < count * args.window:
        raise ValueError(
            f"--tokens: expected at most the {len(tokens)} of {text.name!r}, got {count * args.window}"
        )
    return evaluate.windows(tokens, args.window)


def models(loaded: Any, schemes: list[str]) -> dict[str, Any]:
    """The model as "float", then a twin for each scheme; a quantized model alone, under its folder's name.

    Raises ValueError for a scheme that is none, before any is made, and for schemes with a quantized model.
    """
    from ..evaluate import Recipe

    if loaded.quantized:
        if schemes:
            raise ValueError(f"--scheme: expected a float MODEL, got {loaded.name}, which is quantized")
        return {loaded.name: loaded.model}
    recipes = [Recipe.parse(scheme) for scheme in schemes]
    return {"float": loaded.model} | {recipe.name: recipe.build(loaded.model) for recipe in recipes}


def show(outcome: Any, json_file: str | None) -> None:
    """The table, and JSON where it is wanted."""
    from ..io.atomic import write_file

    if json_file == "-":
        print(outcome.to_json(), end="")
        return
    if json_file:
        write_file(json_file, outcome.to_json())
    print(outcome.table())


def load(folder: str) -> Any:
    """`evaluate.load_pretrained`, while transformers says nothing and draws no bars of its own."""
    from .. import evaluate

    try:
        from transformers.utils import logging
    except ImportError:
        return evaluate.load_pretrained(folder)  # which says so
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return evaluate.load_pretrained(folder)
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
