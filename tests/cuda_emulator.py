"""A CUDA device for tests where there is none: the driver of cuda/emulator, whose kernels run on the CPU.

`build` compiles it once for a state of the sources, with an NVRTC beside it that names kernels and compiles none. `BEGIN`
starts a script that uses it in a process of its own (`run`): there CPU tensors are taken for the device's.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rquant import _rquant

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "cuda"
BUILT = ROOT / "target/cuda-emulator"
COMPILER = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
FLAGS = ("-std=c++17", "-O1", "-g0", "-fPIC", "-DRQUANT_EMULATOR", "-ffp-contract=off")
OWN = ("scheduler", "driver")


def rows(sources=SOURCES):
    """Name, file, options, kernels, whether tensor cores are used: the product's modules and the self-test."""
    found = re.findall(r"^PRIMITIVE\((\w+)", (Path(sources) / "selftest.cu").read_text(), re.MULTILINE)
    selftest = ("selftest", "selftest.cu", ["-DVARIANT="], [f"selftest_{name}" for name in found], False)
    return [*_rquant.cuda_modules(), selftest]


def of_variants(kinds, halves, sources=SOURCES):
    """Names of the product's modules for these bits of codes and types of activations; those of float8 and of neither too."""
    halves = {f"-DHALF={'Half' if half == 'float16' else 'Brain'}" for half in halves}
    fit = {f"-DCODE_BITS={kind}" for kind in kinds} | halves
    variable = ("-DCODE_BITS", "-DHALF")
    return [
        name
        for name, _, defines, *_ in rows(sources)[:-1]
        if "CODE_MANTISSA" in " ".join(defines)
        or all(define in fit for define in defines if define.startswith(variable))
    ]


def build(sources=SOURCES, modules=None, into=BUILT, flags=FLAGS, own=OWN):
    """The folder, in `into`, with libcuda.so.1 made of `sources`, kernels of `modules` (the product's) in it.

    Objects are kept too, each for its own state of what it includes.
    """
    sources = Path(sources)
    known = rows(sources)
    modules = [name for name, *_ in known[:-1]] if modules is None else modules
    emulator = sources / "emulator"
    options = [*flags, f"-I{emulator}", f"-I{sources}"]
    kernels = {
        (file, kernel.removesuffix(defines[0].partition("=")[2]))
        for _, file, defines, kernels, _ in known
        for kernel in kernels
    }
    table = ",".join(f'{{"{file}","{kernel}"}}' for file, kernel in sorted(kernels))
    jobs = [([], emulator / f"{name}.cpp", _state(emulator / f"{name}.cpp", sources)) for name in own]
    for name, file, defines, kernels, _ in known:
        if name in modules:
            runs = " ".join(f"RUNS({kernel})" for kernel in kernels)
            given = [f'-DSOURCE="{file}"', f"-DKERNELS={runs}", *defines]
            state = _state(emulator / "module.cpp", sources) + _state(sources / file, sources)
            jobs.append((given, emulator / "module.cpp", state))
    nvrtc = ([f"-DKERNELS={table}"], emulator / "nvrtc.cpp", _state(emulator / "nvrtc.cpp", sources))
    into.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        *objects, compiler = pool.map(lambda job: _object(into, flags, options, *job), [*jobs, nvrtc])
    folder = into / hashlib.sha256(" ".join(map(str, [*objects, compiler])).encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    _once(folder / "libnvrtc.so.0", [*flags, "-shared", compiler])
    _once(folder / "libcuda.so.1", [*flags, "-shared", "-Wl,-soname,libcuda.so.1", *objects])
    return folder


def _state(path, sources):
    """The text of a file and of ours that it includes."""
    text = path.read_text()
    places = [path.parent, sources, sources / "emulator"]
    for name in re.findall(r'^#include "([\w./]+)"', text, re.MULTILINE):
        text += next((_state(folder / name, sources) for folder in places if (folder / name).exists()), "")
    return text


def _object(into, flags, options, defines, path, state):
    name = hashlib.sha256(repr((COMPILER, flags, defines, path.name, state)).encode()).hexdigest()[:24]
    if (kept := BUILT / f"{name}.o").exists():
        return kept
    _once(into / f"{name}.o", [*options, *defines, "-c", path])
    return into / f"{name}.o"


def _once(path, command):
    """What the compiler makes, whole, unless it is there."""
    if not path.exists():
        whole = path.with_suffix(f".{os.getpid()}.tmp")
        done = subprocess.run(
            [COMPILER, *map(str, command), "-o", str(whole)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-4000:]
        whole.rename(path)


BEGIN = f"""
import ctypes, itertools, os, sys
import torch, rquant
sys.path.insert(0, {str(Path(__file__).parent)!r})
from rquant import _native, _rquant
from rquant._native import cuda as native_cuda
from rquant._backends import cpu, cuda, reference
torch.set_num_threads(1)
# the CPU's own, without VNNI, adds in 16 bits and saturates; a GPU's is exact
torch._int_mm = lambda a, b: (a.cpu().long() @ b.cpu().long()).int()
torch.manual_seed(0)
native_cuda.place = lambda tensor: (0, 0)
assert cuda.ready()
driver = ctypes.CDLL("libcuda.so.1")

def state():
    numbers = (ctypes.c_uint64 * 4)()
    driver.rquant_emulator_state(numbers)
    return list(numbers)

def launches():
    return state()[0]
"""


def run(script, driver, cache, *, begin=BEGIN, **env):
    """Run `script` after `begin` with this driver; what it prints. A failure is an AssertionError with its last lines."""
    given = {"LD_LIBRARY_PATH": str(driver), "RQUANT_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    given |= {"RQUANT_NVRTC": str(driver / "libnvrtc.so.0"), **env}
    done = subprocess.run(
        [sys.executable, "-c", begin + script], env={**os.environ, **given}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout
