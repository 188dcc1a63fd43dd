"""The table of kernels and architectures: `python tests/cuda_table.py` (`make cuda-table`) writes cuda/KERNELS.md.

Registers are what NVRTC says in its output; shared memory is what the launches of cuda_checks.py ask for.
"""

import hashlib
import itertools
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import cuda_cubin
import cuda_emulator
import cuda_mutants

from rquant import _rquant
from rquant.cuda import find_nvrtc
from rquant.cuda.precompile import ARCHITECTURES

TABLE = cuda_emulator.SOURCES / "KERNELS.md"
CUBINS = cuda_emulator.ROOT / "target/cuda-cubins"
COLUMNS = [arch.removeprefix("sm_") for arch in ARCHITECTURES]

HEAD = """# Kernels on every architecture

Written by `make cuda-table` with NVRTC {} of sources {}; a test compares. Registers of a thread by architecture; threads of a
block, and the KiB of shared memory that it takes.

"""


def compiled(arch, names):
    """Cubins of modules for an architecture, as files: compiled now unless the same ones were."""
    nvrtc = (find_nvrtc(13) or find_nvrtc())[0]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda name: Path(_rquant.cuda_precompile(nvrtc, name, arch, CUBINS)), names))


def modules(arch):
    """Names of those that there are for an architecture."""
    return [name for name, *_, ampere in _rquant.cuda_modules() if arch != "sm_75" or not ampere]


def state():
    """A hash of the sources."""
    texts = [path.read_bytes() for path in cuda_mutants.sources(cuda_emulator.SOURCES)]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:8]


def origin():
    """What the table is of, as it says so: NVRTC's version, and the state of the sources."""
    version = _rquant.cuda_nvrtc_version((find_nvrtc(13) or find_nvrtc())[0])
    return "{}.{}".format(*version), state()


@cache
def launches():
    """Bytes of dynamic shared memory of each kernel, the most that a check launches it with; runs every variant."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        judge = cuda_mutants.Judge(Path(temporary))
        built = cuda_emulator.build()
        for op in cuda_mutants.OPS:
            names = set()
            for kind, half in itertools.product((4, 8, 2), ("float16", "bfloat16")):
                # the first tells what there are variants of
                if names and not any(
                    one in name for name in names for one in (("_4",) if kind != 4 else ("f16",))
                ):
                    continue
                trace = Path(temporary) / f"{op}.{kind}.{half}"
                trace.touch()
                assert judge.passes(built, "0", op, kind, half, trace), (op, kind, half)
                for line in trace.read_text().splitlines():
                    name, _, shared = line.split()
                    names.add(name)
                    found[name] = max(found.get(name, 0), int(shared))
        judge.close()
    return found


def read():
    """Origin, and by kernel the registers by architecture, threads and KiB of shared memory, of the file."""
    text = TABLE.read_text()
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    return re.search(r"NVRTC (\S+) of sources (\w+);", text).groups(), {
        name: ({arch: int(n) for arch, n in zip(COLUMNS, numbers, strict=True) if n}, int(threads), shared)
        for name, *numbers, threads, shared in rows
    }


def shared_memory(kernel):
    """As the table has it: KiB, with nothing for none."""
    kib = launches()[kernel] / 1024
    return f"{kib:.3g}" if kib else ""


def write():
    """Compile everything and write the file."""
    found = {}
    for arch, column in zip(ARCHITECTURES, COLUMNS, strict=True):
        for cubin in compiled(arch, modules(arch)):
            for name, kernel in cuda_cubin.read(cubin.read_bytes()).items():
                found.setdefault(name, {})[column] = kernel
        print(arch, file=sys.stderr, flush=True)
    lines = [f"| kernel | {' | '.join(COLUMNS)} | threads | shared |", "|---|" + "--:|" * (len(COLUMNS) + 2)]
    for name in (kernel for _, _, _, kernels, _ in _rquant.cuda_modules() for kernel in kernels):
        cells = [str(found[name][c].registers) if c in found[name] else "" for c in COLUMNS]
        lines.append(
            f"| `{name}` | {' | '.join(cells)} | {found[name]['80'].threads} | {shared_memory(name)} |"
        )
    TABLE.write_text(HEAD.format(*origin()) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    write()
