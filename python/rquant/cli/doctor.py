"""`rquant doctor`: what this machine has, and whether the kernels compute right on it."""

import argparse
import contextlib
import importlib
import json
from typing import Any

from ..info import backend_info
from ._selfcheck import failures


def add_parser(subparsers: Any) -> None:
    """Declare the arguments."""
    text = "kernels, threads, torch, CUDA; a quick check that the kernels compute right"
    parser = subparsers.add_parser(
        "doctor", help=text, description=f"What there is: {text}. If not, exit code 1."
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")


def run(args: argparse.Namespace) -> int:
    """0 if every level works."""
    with contextlib.suppress(ImportError):
        importlib.import_module("torch")  # backend_info tells of what is imported
    info, wrong = backend_info(), failures()
    if args.json:
        print(json.dumps({**info, "check": wrong}, indent=2))
        return int(any(wrong.values()))
    for name, value in info.items():
        if isinstance(value, dict):
            for key, inner in value.items():
                print(f"{f'{name}, {key}':<18}{inner}")
        else:
            shown = ", ".join(value) if isinstance(value, list) else "none" if value is None else value
            print(f"{name:<18}{shown}")
    for isa, said in wrong.items():
        print(f"{f'check, {isa}':<18}{said or 'works: the same bits as portable'}")
    return int(any(wrong.values()))
