"""`rquant quantize IN OUT`: a float checkpoint to a quantized one, one tensor in memory at a time."""

import argparse
from typing import Any

from ..qtypes import ACTIVATIONS, CASTS, WEIGHTS
from ..scheme import OPTIMIZERS, Scheme
from ..streaming import Summary, Wish, quantize_checkpoint

_DESCRIPTION = """Quantize the weights of a safetensors file, or of a Hugging Face directory with its config and tokenizer.

One tensor is in memory at a time. OUT appears whole at the end; until then what is done lies in OUT.partial, and the same
command goes on after an interruption.

Without the model, names and shapes tell what a weight is: every float matrix called *.weight. Left float unless
--include or --rule names them are embeddings (embed_tokens, wte, word_embeddings, ...), and unless --rule does, routers
(gate, router) and, in a directory, what transformers fuses or renames while it loads (experts.0.w1, embed_out).

Outliers in the input are for rquant.quantize: their columns are found while a model runs."""

_WEIGHTS = (*(t.name[1:] for t in (*WEIGHTS, *CASTS)), "float8")
_TYPES = f"one of {', '.join(_WEIGHTS)} (e4m3fn); default: int8"


def add_parser(subparsers: Any) -> None:
    """Declare the arguments."""
    parser = subparsers.add_parser(
        "quantize",
        help="a float checkpoint to a quantized one, in little memory",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="IN", help="a .safetensors file or a directory that holds them")
    parser.add_argument("output", metavar="OUT", help="a file or directory, as IN is; must not exist")
    parser.add_argument("--weights", default="int8", choices=_WEIGHTS, metavar="TYPE", help=_TYPES)
    parser.add_argument(
        "--activations",
        choices=tuple(t.name[1:] for t in ACTIVATIONS),
        help="int8: integer arithmetic; default: weight-only",
    )
    parser.add_argument(
        "--optimizer",
        choices=tuple(OPTIMIZERS),
        default="minmax",
        help="who chooses the scales, as in rquant.quantize (minmax); mse and hqq take longer, hqq needs zero points",
    )
    parser.add_argument(
        "--group-size",
        type=_group_size,
        metavar="N",
        help="weights that share a scale; -1: a whole row; default: int8 -1, int4 64, int2 32",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--symmetric", action="store_true", default=None, help="no zero points (default for int8)"
    )
    kind.add_argument(
        "--affine", action="store_false", dest="symmetric", help="zero points (default for int4, int2)"
    )
    pattern = {"nargs": "+", "action": "extend", "default": [], "metavar": "GLOB"}
    parser.add_argument("--include", **pattern, help="only these modules, and all inside them; `re:...` too")
    parser.add_argument("--exclude", **pattern, help="leave these float")
    parser.add_argument(
        "--rule",
        type=_rule,
        action="append",
        default=[],
        metavar="GLOB=SCHEME",
        help="another scheme for some; the first rule that matches holds: 'lm_head=int8', '*.down_proj=int4:32:hqq', "
        "'*.gate=float'",
    )
    parser.add_argument(
        "--transposed", **pattern, help="weights that are [in, out]; GPT-2's are known by config.json"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _group_size(text: str) -> int:
    try:
        return Scheme.resolve("int8", int(text)).group_size
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected -1 (per channel) or an integer >= 1, got {text!r}"
        ) from None


def _rule(text: str) -> tuple[str, Scheme | None]:
    pattern, _, wanted = text.rpartition("=")
    if not pattern:
        raise argparse.ArgumentTypeError(f"expected GLOB=SCHEME, got {text!r}")
    return pattern, None if wanted == "float" else _scheme(wanted)


def _scheme(text: str) -> Scheme:
    weights, *options = text.split(":")
    arguments: dict[str, Any] = {}
    try:
        for option in options:
            if option in ("symmetric", "affine"):
                arguments["symmetric"] = option == "symmetric"
            elif option in OPTIMIZERS:
                arguments["optimizer"] = option
            else:
                arguments["group_size"] = int(option)
        return Scheme.resolve(weights, **arguments)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected float, or a type with :GROUP_SIZE, :symmetric, :affine or :OPTIMIZER after it, got {text!r}"
        ) from None


def run(args: argparse.Namespace) -> int:
    """Convert, and say what was done."""
    wish = Wish(
        Scheme.resolve(args.weights, args.group_size, args.symmetric, args.optimizer),
        args.activations,
        include=tuple(args.include),
        exclude=tuple(args.exclude),
        rules=tuple(args.rule),
        transposed=tuple(args.transposed),
    )
    try:
        summary = quantize_checkpoint(args.input, args.output, wish, progress=not args.quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on where this one was") from None
    print(_told(summary))
    return 0


def _told(summary: Summary) -> str:
    before, after = summary.bytes_before, summary.bytes_after
    kept = [
        f"  kept {_size(size)} in {count} tensors: {reason}"
        for reason, (count, size) in summary.reasons().items()
    ]
    speed = f"{summary.seconds:.1f} s, {summary.moved / 1e9 / summary.seconds:.2f} GB/s"
    if summary.resumed:
        speed += f"; {_size(summary.resumed)} were done before"
    return "\n".join(
        [
            f"{summary.out}: {len(summary.quantized)} weights quantized",
            *kept,
            f"{_size(before)} -> {_size(after)}, {before / max(after, 1):.2f}x smaller",
            speed,
        ]
    )


def _size(count: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} bytes"
