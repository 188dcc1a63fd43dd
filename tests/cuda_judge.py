"""A process with torch in which checks run against one emulator after another, each in a fork.

Lines in: folder of the emulator, folder for compiled modules, order of threads, op, bits, type of activations, and a file
for launches or "-". Lines out: whether that passed.
"""

import ctypes
import os
import resource
import sys

import cuda_checks
import torch

from rquant._backends import cuda
from rquant._native import cuda as native_cuda

SECONDS = 60


def passes(folder, cache, order, op, bits, half, trace):
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))  # a mutant may never end
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if "RQUANT_MUTANTS_VERBOSE" not in os.environ:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.environ |= {"RQUANT_EMULATOR_ORDER": order, "RQUANT_CACHE_DIR": cache}
            os.environ |= {"RQUANT_NVRTC": f"{folder}/libnvrtc.so.0"}
            os.environ |= cuda_checks.ENVIRONMENT.get(op, {})
            if trace != "-":
                os.environ["RQUANT_EMULATOR_TRACE"] = trace
            driver = ctypes.CDLL(
                f"{folder}/libcuda.so.1", mode=ctypes.RTLD_GLOBAL
            )  # found by its name from here on
            native_cuda.place = lambda tensor: (0, 0)
            assert cuda.ready()
            cuda_checks.CHECKS[op](int(bits), getattr(torch, half))
            numbers = (ctypes.c_uint64 * 4)()
            driver.rquant_emulator_state(numbers)
            assert numbers[0], "nothing was launched"
            assert not numbers[3], "bank conflicts"
        except BaseException as error:
            print(repr(error)[:500], file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(passes(*line.split()), flush=True)
