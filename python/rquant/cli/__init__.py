"""The command `rquant`: a file of this folder is a subcommand of its name, unless it begins with an underscore.

Each has `add_parser(subparsers)`, which adds that subcommand, and `run(args) -> int`, its exit code. All of them are imported
for `rquant --help`: what takes long to import, torch above all, belongs inside `run`. `run` raises ValueError, OSError or
ImportError for what a user can cause; that becomes one line and exit code 1.
"""

import argparse
import importlib
import os
import pkgutil
import sys
from typing import NoReturn

from .._rquant import __version__


class Parser(argparse.ArgumentParser):
    """argparse's, but a mistake is one line, without the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; in what it parses, `run` is the chosen one's function."""
    parser = Parser("rquant", description="Quantized inference: packed int8, int4 and int2 weights.")
    parser.add_argument("--version", action="version", version=f"rquant {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for info in pkgutil.iter_modules(__path__):
        if not info.name.startswith("_"):
            module = importlib.import_module(f".{info.name}", __name__)
            module.add_parser(subparsers)
            subparsers.choices[info.name].set_defaults(run=module.run, command=info.name)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 wrong usage (argparse exits by itself), 130 interrupted."""
    args = make_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KeyboardInterrupt as interrupt:
        print(
            f"rquant {args.command}: interrupted{''.join(f'; {said}' for said in interrupt.args)}",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:  # the reader, `head` perhaps, has enough; nothing is left to be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError) as error:
        print(f"rquant {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
