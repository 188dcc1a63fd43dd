"""From a source to a launch: what is compiled, for which GPU, how often, and what is said where it fails."""

import re
import struct

import cuda_cubin
import cuda_emulator
import pytest

from rquant import _rquant
from rquant.cuda import find_nvrtc

pytestmark = pytest.mark.skipif(cuda_emulator.COMPILER is None, reason="no C++ compiler for the emulator")
needs_nvrtc = pytest.mark.skipif(find_nvrtc() is None, reason="no NVRTC (a CUDA build of torch brings it)")

BEGIN = """
import ctypes, os
import numpy as np
from rquant import _rquant
from rquant.cuda import cache_folder, find_nvrtc
driver = ctypes.CDLL("libcuda.so.1")
_rquant.cuda_configure(*find_nvrtc(), cache_folder())
codes = np.random.default_rng(0).integers(-8, 8, (20, 64), dtype=np.int8)
want = ((codes + 8).astype(np.uint32).reshape(20, 8, 8) << np.arange(0, 32, 4, dtype=np.uint32)).sum(-1)
def pack(device=0, stream=0):
    words = np.zeros((20, 8), np.uint32)
    _rquant.cuda_bitpack(device, stream, True, codes.ctypes.data, words.ctypes.data, 20, 64, 4)
    assert (words == want).all()
def says(call, *words):
    try:
        call()
    except (RuntimeError, ValueError) as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(words)
def compilations():
    return ctypes.CDLL(os.environ["RQUANT_NVRTC"]).rquant_emulator_compilations()
"""


def run(script, *arguments, **env):
    """In a process without torch, which starts at once."""
    return cuda_emulator.run(script, *arguments, begin=BEGIN, **env)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_threads_wait_for_one_compilation_and_python_goes_on(cuda_driver, tmp_path):
    run(
        """
import threading, time
done, turns = [], 0
threads = [threading.Thread(target=lambda: done.append(pack())) for _ in range(6)]
[thread.start() for thread in threads]
while any(thread.is_alive() for thread in threads):
    time.sleep(0.001)
    turns += 1
assert compilations() == 1 and len(done) == 6
assert turns > 20, f"{turns} turns while something was compiled for half a second: the GIL was held"
""",
        cuda_driver,
        tmp_path,
        RQUANT_EMULATOR_COMPILER="slow",
    )


@pytest.mark.parametrize("folder", ["cache", "/proc/no-such-folder"])
def test_devices_of_one_architecture_share_what_was_compiled(cuda_driver, tmp_path, folder):
    script = "pack(0), pack(1); assert compilations() == 1"
    run(script, cuda_driver, tmp_path / folder)


def test_each_device_has_its_own_architecture(cuda_driver, tmp_path):
    run(
        "pack(0), pack(1); assert compilations() == 2",
        cuda_driver,
        tmp_path,
        RQUANT_EMULATOR_ARCH="80,90",
    )
    assert [name.split(".")[1] for name in files(tmp_path)] == ["sm_80", "sm_90a"]


def test_a_gpu_newer_than_the_compiler_gets_ptx(cuda_driver, tmp_path):
    """Of the latest architecture that is known and not beyond it; kept, and compiled anew when damaged."""
    env = {"RQUANT_EMULATOR_ARCH": "103", "RQUANT_EMULATOR_KNOWN": "75,80,90,100,120"}
    script = "pack()\n"
    run(script + "assert compilations() == 1", cuda_driver, tmp_path, **env)
    (name,) = files(tmp_path)
    assert name.startswith("bitpack_4.compute_100.")
    assert name.endswith(".ptx")
    run(script + "assert compilations() == 0", cuda_driver, tmp_path, **env)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-3])
    run(script + "assert compilations() == 1", cuda_driver, tmp_path, **env)
    assert (tmp_path / name).read_bytes() == whole


def test_a_gpu_older_than_the_compiler_is_an_error(cuda_driver, tmp_path):
    script = "says(pack, 'bitpack_4 needs compute capability 7.5 or later, got sm_61')"
    run(script, cuda_driver, tmp_path, RQUANT_EMULATOR_ARCH="61")
    assert files(tmp_path) == []


def test_a_failing_compilation_shows_the_log_and_is_tried_again(cuda_driver, tmp_path):
    run(
        """
says(pack, "bitpack.cu", "-DVARIANT=_4", "-DCODE_BITS=4", "sm_90a", "line 7: error: an emulated mistake")
os.environ["RQUANT_EMULATOR_COMPILER"] = ""
pack()
""",
        cuda_driver,
        tmp_path,
        RQUANT_EMULATOR_COMPILER="fails",
    )


def test_no_compiler_is_an_error_that_names_what_it_is_for(cuda_driver, tmp_path):
    script = """
_rquant.cuda_configure(None, 0, os.environ["RQUANT_CACHE_DIR"])
says(pack, "bitpack_4", "sm_90a", "RQUANT_NVRTC")
_rquant.cuda_configure("/nowhere/libnvrtc.so.13", 13, os.environ["RQUANT_CACHE_DIR"])
says(pack, "/nowhere/libnvrtc.so.13")
"""
    run(script, cuda_driver, tmp_path)


def test_another_version_of_the_compiler_compiles_anew(cuda_driver, tmp_path):
    """Without a compiler any of its major will do: what is carried to another machine."""
    run("pack()", cuda_driver, tmp_path)
    run("pack(); assert compilations() == 1", cuda_driver, tmp_path, RQUANT_EMULATOR_MINOR="2")
    assert [name.split(".cuda")[1] for name in files(tmp_path)] == ["0.0.cubin", "0.2.cubin"]
    without = "_rquant.cuda_configure({}, 0, os.environ['RQUANT_CACHE_DIR']); pack()"
    for nvrtc in (None, "/nowhere/libnvrtc.so.0"):
        run(without.format(repr(nvrtc)), cuda_driver, tmp_path)
    for name in files(tmp_path):
        (tmp_path / name).rename(tmp_path / name.replace(".cuda0.", ".cuda12."))
    script = "_rquant.cuda_configure(None, 13, os.environ['RQUANT_CACHE_DIR']); says(pack, 'NVRTC is needed')"
    run(script, cuda_driver, tmp_path)


def test_a_file_that_the_driver_refuses_is_compiled_anew(cuda_driver, tmp_path):
    """Whole, and for another architecture."""
    run("pack()", cuda_driver, tmp_path)
    (name,) = files(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:49] + bytes([80]) + whole[50:])
    run("pack(); assert compilations() == 1", cuda_driver, tmp_path)
    assert (tmp_path / name).read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_memory_only(cuda_driver, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")  # where the folder should be
    run("pack(), pack(); assert compilations() == 1", cuda_driver, blocked)
    assert blocked.read_text() == ""


def test_nothing_is_loaded_while_a_stream_records(cuda_driver, tmp_path):
    run(
        """
driver.rquant_emulator_record(ctypes.c_uint64(0x1000))
says(lambda: pack(0, 0x1000), "bitpack_4", "sm_90a", "capturing a graph")
says(lambda: pack(0, 0x2000), "cuModuleLoadData of bitpack_4 on sm_90a", "900")  # by another thread, say
driver.rquant_emulator_record(ctypes.c_uint64(0))
pack()
driver.rquant_emulator_record(ctypes.c_uint64(0x1000))
pack(0, 0x1000)
""",
        cuda_driver,
        tmp_path,
    )


@needs_nvrtc
def test_the_driver_counts_registers_and_threads(cuda_driver, tmp_path):
    """In the compiler's real output: what a kernel needs more than there is of is refused, and the error says of which."""
    nvrtc = str(find_nvrtc()[0])
    cubin, log = _rquant.cuda_compile(nvrtc, "bitpack_4", "sm_90a")
    kernel = cuda_cubin.read(cubin)["pack_codes_4"]
    assert f"Used {kernel.registers} registers" in log
    assert kernel[1:] == (0, 0, 256)
    bounds, one = struct.pack("<2BH3I", 4, 5, 12, 256, 1, 1), struct.pack("<2BH3I", 4, 5, 12, 1024, 1, 1)
    greedy = re.sub(
        rb"(\x04\x2f\x08\x00....)....",
        lambda match: match[1] + b"\xff\0\0\0",
        cubin.replace(bounds, one),
        flags=re.DOTALL,
    )
    assert cuda_cubin.read(greedy)["pack_codes_4"] == (255, 0, 0, 1024)
    (tmp_path / "cubin").write_bytes(cubin)
    (tmp_path / "greedy").write_bytes(greedy)
    run(
        f"""
context, module, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
assert driver.cuInit(0) == driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == driver.cuCtxSetCurrent(context) == 0
def launch(file, threads, shared):
    image = open({str(tmp_path)!r} + "/" + file, "rb").read()
    assert driver.cuModuleLoadData(ctypes.byref(module), image) == 0
    assert driver.cuModuleGetFunction(ctypes.byref(function), module, b"pack_codes_4") == 0
    return driver.cuLaunchKernel(function, 1, 1, 1, threads, 1, 1, shared, None, None, None)
assert launch("cubin", 512, 0) == 1  # __launch_bounds__ says 256
assert launch("cubin", 128, 50_000) == 1
assert driver.cuFuncSetAttribute(function, 8, 232_449) == 1 and driver.cuFuncSetAttribute(function, 8, 232_448) == 0
assert launch("greedy", 1024, 0) == 701
""",
        cuda_driver,
        tmp_path,
    )
    cache = tmp_path / "cache"
    run("pack()", cuda_driver, cache, RQUANT_NVRTC=nvrtc)
    (path,) = cache.iterdir()
    path.write_bytes(cubin.replace(bounds, struct.pack("<2BH3I", 4, 5, 12, 32, 1, 1)))
    script = "says(pack, 'cuLaunchKernel of pack_codes_4 on sm_90a', 'error 1')"
    run(script, cuda_driver, cache, RQUANT_NVRTC=nvrtc)
