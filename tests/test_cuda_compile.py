"""What NVRTC makes of the CUDA sources: every kernel compiles, without spills, and within registers that let two blocks run.

`RQUANT_CUDA_CHECK=1` takes all variants for all architectures (`make cuda-check`) and prints a table.
"""

import os
import re

import pytest

from rquant import _rquant
from rquant.cuda import find_nvrtc
from rquant.cuda.precompile import ARCHITECTURES

FULL = bool(os.environ.get("RQUANT_CUDA_CHECK"))
NVRTC = find_nvrtc(None if FULL else 13) or find_nvrtc()
# each source once
QUICK = {
    "quantize_rows",
    "dequantize_2",
    "bitpack_4",
    "linear_small_4_bf16",
    "linear_tiled_8_f16",
    "linear_int8_2",
    "linear_int8_small_4",
    "linear_simt_2",
    "linear_int8_simt_4",
    "outliers",
    "outlier_products_8",
    "add_parts",
}
MODULES = [row for row in _rquant.cuda_modules() if FULL or row[0] in QUICK]

pytestmark = pytest.mark.skipif(NVRTC is None, reason="no NVRTC (a CUDA build of torch brings it)")


def resources(log):
    """Registers and bytes of spills of each kernel, from the assembler's report."""
    names = re.findall(r"Compiling entry function '(\w+)'", log)
    spills = [
        int(a) + int(b) for a, b in re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    ]
    return dict(
        zip(names, zip(map(int, re.findall(r"Used (\d+) registers", log)), spills, strict=True), strict=True)
    )


@pytest.mark.parametrize("arch", ARCHITECTURES if FULL else ["sm_75", "sm_80", "sm_90a"])
def test_sources_compile(arch, capsys):
    most = {"linear_small": 128, "linear_tiled": 255, "linear_int8": 255}
    most |= {"linear_int8_small": 128, "linear_simt": 168, "linear_int8_simt": 168, "outlier_products": 128}
    rows = []
    for name, file, _, kernels, ampere in MODULES:
        if ampere and arch == "sm_75":
            continue
        cubin, log = _rquant.cuda_compile(NVRTC[0], name, arch)
        assert cubin[:4] == b"\x7fELF"
        assert all(b".text." + kernel.encode() + b"\0" in cubin for kernel in kernels), (arch, name)
        found = resources(log)
        assert sorted(found) == sorted(kernels), log
        for kernel, (registers, spilled) in found.items():
            rows.append(
                f"{arch:8} {kernel:32} {registers:4} registers {spilled:4} bytes spilled {len(cubin) >> 10:5} KiB"
            )
            assert registers <= most.get(file.removesuffix(".cu"), 64), rows[-1]
            assert not spilled, rows[-1]
    if FULL:
        with capsys.disabled():
            print("", *rows, sep="\n")


def test_a_source_that_does_not_compile_shows_the_log():
    with pytest.raises(
        RuntimeError,
        match=r"bitpack\.cu -DVARIANT=_4 -DCODE_BITS=4 does not compile for sm_10:\n.*\n.*gpu-architecture",
    ):
        _rquant.cuda_compile(NVRTC[0], "bitpack_4", "sm_10")
