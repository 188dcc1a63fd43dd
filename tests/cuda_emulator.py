"""A CUDA device for tests where there is none: the driver of cuda/emulator, whose kernels run on the CPU.

`build` compiles it once for a state of the sources, with an NVRTC beside it that names kernels and compiles none. `BEGIN` starts a script that uses it in a process of its own (`run`):
there CPU tensors are taken for the device's.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rquant import _rquant

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "cuda"
COMPILER = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
FLAGS = ["-std=c++17", "-O1", "-g0", "-fPIC", "-DRQUANT_EMULATOR", "-ffp-contract=off"]


def build(sources=SOURCES, modules=None, into=ROOT / "target/cuda-emulator"):
    """The folder, in `into`, with libcuda.so.1 made of `sources`, kernels of `modules` (all) in it."""
    chosen = [row for row in _rquant.cuda_modules() if modules is None or row[0] in modules]
    files = sorted(
        path for path in Path(sources).rglob("*") if path.suffix in (".cu", ".cuh", ".hpp", ".cpp")
    )
    state = hashlib.sha256(repr((FLAGS, chosen)).encode())
    for path in files:
        state.update(path.name.encode() + path.read_bytes())
    folder = into / state.hexdigest()[:16]
    if (folder / "libcuda.so.1").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    emulator = Path(sources) / "emulator"
    flags = [*FLAGS, f"-I{emulator}", f"-I{sources}"]
    own = ("scheduler", "driver", "nvrtc")
    jobs = [[f"{emulator}/{name}.cpp", "-o", f"{folder}/{name}.o"] for name in own]
    for name, file, defines, kernels, _ in chosen:
        runs = " ".join(f"RUNS({kernel})" for kernel in kernels)
        given = [f'-DSOURCE="{file}"', f"-DKERNELS={runs}", *defines]
        jobs.append([*given, f"{emulator}/module.cpp", "-o", f"{folder}/{name}.o"])
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda job: _call([COMPILER, *flags, "-c", *job]), jobs))
    assert len(done) == len(jobs)
    objects = [job[-1] for job in jobs if job[-1] != f"{folder}/nvrtc.o"]
    _call([COMPILER, "-shared", f"{folder}/nvrtc.o", "-o", f"{folder}/libnvrtc.so.0"])
    whole = folder / f"{os.getpid()}.so"
    _call([COMPILER, "-shared", "-Wl,-soname,libcuda.so.1", *objects, "-o", str(whole)])
    whole.rename(folder / "libcuda.so.1")
    return folder


def _call(command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


BEGIN = f"""
import ctypes, itertools, os, sys
import torch, rquant
sys.path.insert(0, {str(Path(__file__).parent)!r})
from rquant import _native, _native_cuda, _rquant
from rquant._backends import cpu, cuda, reference
torch.set_num_threads(1)
torch.manual_seed(0)
_native_cuda.place = lambda tensor: (0, 0)
assert cuda.ready()
driver = ctypes.CDLL("libcuda.so.1")

def state():
    numbers = (ctypes.c_uint64 * 4)()
    driver.rquant_emulator_state(numbers)
    return list(numbers)

def launches():
    return state()[0]
"""


def run(script, driver, cache, **env):
    """Run `script` after BEGIN with this driver; what it prints. A failure is an AssertionError with its last lines."""
    given = {"LD_LIBRARY_PATH": str(driver), "RQUANT_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    given |= {"RQUANT_NVRTC": str(driver / "libnvrtc.so.0"), **env}
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script], env={**os.environ, **given}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout
