"""`python -m rquant.cuda.precompile --arch sm_90a --out DIR`: every kernel for one architecture, without a GPU.

A program on another machine that runs with `RQUANT_CACHE_DIR=DIR` compiles nothing.
"""

import argparse
import re
import sys
from pathlib import Path

from .. import _rquant
from ..progress import each
from .compiler import cache_folder, find_nvrtc

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120")
"""Those that every kernel is tried on."""


def precompile(arch: str, folder: str | Path | None = None, nvrtc: str | Path | None = None) -> list[Path]:
    """Compile the kernels for `arch`, as in "sm_90a", into `folder`; by default `cache_folder()` and the NVRTC that is found.

    Returns the files. Those that are there already are left. Raises RuntimeError without NVRTC, or with what it says.
    """
    if not re.fullmatch(r"sm_\d{2,3}[af]?", arch):
        raise ValueError(f"arch: expected a name like 'sm_90a', got {arch!r}")
    if nvrtc is None:
        found = find_nvrtc()
        if found is None:
            raise RuntimeError("CUDA: no NVRTC found: install nvidia-cuda-nvrtc, or set RQUANT_NVRTC")
        nvrtc = found[0]
    turing = int(re.sub(r"\D", "", arch)) < 80
    names = [name for name, *_, ampere in _rquant.cuda_modules() if not (turing and ampere)]
    into = Path(folder or cache_folder())
    return [
        Path(_rquant.cuda_precompile(nvrtc, name, arch, into)) for name in each(names, f"kernels for {arch}")
    ]


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rquant.cuda.precompile", description=__doc__)
    parser.add_argument(
        "--arch", action="append", required=True, help="as sm_90a; may be given several times"
    )
    parser.add_argument("--out", type=Path, help="folder for the compiled kernels (the user's cache without)")
    parser.add_argument("--nvrtc", type=Path, help="path of libnvrtc.so (found without)")
    options = parser.parse_args(arguments)
    for arch in options.arch:
        try:
            files = precompile(arch, options.out, options.nvrtc)
        except (RuntimeError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
        size = sum(file.stat().st_size for file in files) / 2**20
        print(f"{arch}: {len(files)} modules, {size:.1f} MiB in {files[0].parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
