"""What NVRTC makes of the CUDA sources: registers that let two blocks run, no spills, the instructions that were meant.

`RQUANT_CUDA_CHECK=1` takes all variants for all architectures (`make cuda-check`); cuda/KERNELS.md has the table.
"""

import os

import cuda_cubin
import cuda_sass
import cuda_table
import pytest

from rquant import _rquant
from rquant.cuda import find_nvrtc
from rquant.cuda.precompile import ARCHITECTURES

FULL = bool(os.environ.get("RQUANT_CUDA_CHECK"))
NVRTC = find_nvrtc(13) or find_nvrtc()
SHARED = {
    "sm_75": 64,
    "sm_80": 163,
    "sm_90": 227,
    "sm_90a": 227,
    "sm_100": 227,
}  # KiB of a block; 99 elsewhere

needs_nvrtc = pytest.mark.skipif(NVRTC is None, reason="no NVRTC (a CUDA build of torch brings it)")


def chosen(arch):
    """All modules, or the first of each source, of another width on each architecture."""
    names = cuda_table.modules(arch)
    if FULL:
        return names
    of_source = {}
    for name, file, *_ in _rquant.cuda_modules():
        if name in names:
            of_source.setdefault(file, []).append(name)
    return [
        same[(2 * i + ARCHITECTURES.index(arch)) % len(same)] for i, same in enumerate(of_source.values())
    ]


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES if FULL else ["sm_75", "sm_80", "sm_90a"])
def test_registers_and_instructions(arch):
    """As in the table, if NVRTC and sources are the table's; below what two blocks to a multiprocessor leave in any case."""
    origin, table = cuda_table.read()
    known = origin == cuda_table.origin()
    names = chosen(arch)
    rows = {row[0]: row for row in _rquant.cuda_modules()}
    for name, cubin in zip(names, cuda_table.compiled(arch, names), strict=True):
        found = cuda_cubin.read(cubin.read_bytes())
        assert sorted(found) == sorted(rows[name][3]), (arch, name)
        listing = cuda_sass.instructions(cubin) if cuda_sass.disassembler() else {}
        for kernel, resources in found.items():
            assert resources.registers <= min(255, 65536 // (2 * resources.threads)), (
                arch,
                kernel,
                resources,
            )
            assert not resources.stack, f"{kernel} spills on {arch}: {resources}"
            if known:
                want = table[kernel][0][arch.removeprefix("sm_")]
                assert resources.registers == want, (
                    f"{kernel} on {arch}: run `make cuda-table` and look at what changed"
                )
                assert resources.threads == table[kernel][1], kernel
            if listing:
                here = listing[kernel]
                assert not any(cuda_sass.has(here, spill) for spill in cuda_sass.SPILLS), (arch, kernel)
                missing = {one for one in cuda_sass.meant(kernel) if not cuda_sass.has(here, one)}
                assert not missing, (arch, kernel, missing, sorted(here))


@pytest.mark.skipif(cuda_sass.disassembler() is None, reason="no nvdisasm (the dev extra brings it)")
def test_instructions_are_looked_for():
    """What the gate above finds meant, for kernels whose instructions are known."""
    assert cuda_sass.meant("linear_tiled64_4_f16") >= {
        "HMMA.16816.F32",
        "LDGSTS.E.BYPASS",
        "LDS.128",
        "BAR.SYNC",
    }
    assert cuda_sass.meant("linear_int8_tiled16_2") >= {"IMMA.16832.S8.S8", "LDGSTS.E", "DEPBAR.LE"}
    assert cuda_sass.meant("linear_small_8_bf16") >= {"HMMA.16816.F32", "LDG.E.128"}
    assert cuda_sass.meant("quantize_rows") == {"SHFL.BFLY", "BAR.SYNC"}
    assert cuda_sass.meant("pack_codes_4") == set()


def test_the_table_has_every_kernel():
    """On every architecture that it is for. To make it takes minutes, so only `make cuda-check` insists that it is current."""
    origin, table = cuda_table.read()
    if origin[1] != cuda_table.state() and not FULL:
        pytest.skip("cuda/KERNELS.md is of other sources: `make cuda-table` writes it anew")
    assert origin[1] == cuda_table.state(), "run `make cuda-table`"
    for _, _, _, kernels, ampere in _rquant.cuda_modules():
        for kernel in kernels:
            assert kernel in table, f"{kernel}: run `make cuda-table`"
            archs = {arch.removeprefix("sm_") for arch in ARCHITECTURES} - ({"75"} if ampere else set())
            assert set(table[kernel][0]) == archs, kernel
    assert len(table) == sum(len(kernels) for _, _, _, kernels, _ in _rquant.cuda_modules())


@pytest.mark.skipif(not FULL, reason="minutes: `make cuda-check` runs it")
def test_shared_memory():
    """Every kernel is launched by some check, with the shared memory that the table says, which all architectures have."""
    for kernel, (registers, _, shared) in cuda_table.read()[1].items():
        assert kernel in cuda_table.launches(), f"no check launches {kernel}"
        assert shared == cuda_table.shared_memory(kernel), f"{kernel}: run `make cuda-table`"
        for arch in registers:
            most = SHARED.get(f"sm_{arch}", 99)
            assert cuda_table.launches()[kernel] <= most << 10, f"{kernel} takes more than sm_{arch} has"


@needs_nvrtc
def test_a_source_that_does_not_compile_shows_the_log():
    with pytest.raises(
        RuntimeError,
        match=r"bitpack\.cu -DVARIANT=_4 -DCODE_BITS=4 does not compile for sm_10:\n.*\n.*gpu-architecture",
    ):
        _rquant.cuda_compile(NVRTC[0], "bitpack_4", "sm_10")
