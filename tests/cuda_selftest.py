"""Runs cuda/selftest.cu, a kernel for each instruction that the CUDA kernels are made of, on seeded words.

`python tests/cuda_selftest.py OUT.npz` writes inputs and outputs of this machine's GPU (or of the emulator, where
LD_LIBRARY_PATH leads to it); `tests/golden/cuda_primitives.npz` is one of a GPU, which the emulator is compared with.
"""

import ctypes
import os
import re
import sys
import zlib
from pathlib import Path

import numpy as np

from rquant import _rquant
from rquant.cuda import find_nvrtc

SOURCE = Path(__file__).parent.parent / "cuda/selftest.cu"
GOLDEN = Path(__file__).parent / "golden/cuda_primitives.npz"
BLOCKS, LANES = 64, 32
SHARED = 4096


def primitives():
    """Letters of inputs and outputs by name, as the source has them."""
    found = re.findall(r'^PRIMITIVE\((\w+), "([^"]+)", "([^"]+)"', SOURCE.read_text(), re.MULTILINE)
    return {name: (inputs, outputs) for name, inputs, outputs in found}


def inputs(name):
    """uint32 `[blocks, lanes, words]` for a primitive, the same everywhere: numbers near every limit, and random ones."""
    letters, random = primitives()[name][0], np.random.default_rng(zlib.crc32(name.encode()))
    return np.stack([_words(letter, random) for letter in letters], axis=-1)


def _words(letter, random):
    shape = (BLOCKS, LANES)
    bits = random.integers(0, 2**32, shape, dtype=np.uint32)
    if letter == "c":
        return bits % 17
    if letter in "u-":
        return bits
    single = letter in "fF"
    if letter.isupper():  # blocks of small integers, whose sums are exact in any order, and of others
        whole = random.integers(-8, 9, (*shape, 2)).astype(np.float32)
        fraction = random.standard_normal((*shape, 2)).astype(np.float32)
        values = np.where((np.arange(BLOCKS) % 2 == 0)[:, None, None], whole, fraction)
        return values[..., 0].view(np.uint32).copy() if single else _pairs(values, letter == "H")
    special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        2.5,
        -3.5,
        126.5,
        127.5,
        -128.5,
        1e-8,
        6e-8,
        6.1e-5,
        65504,
        65519,
        65520,
    ]
    special += [
        1e-40,
        1.17549435e-38,
        3.4e38,
        2147483520.0,
        -2147483648.0,
        2147483648.0,
        np.inf,
        -np.inf,
        np.nan,
    ]
    values = random.standard_normal((*shape, 2)).astype(np.float32) * np.float32(2.0) ** random.integers(
        -20, 20, (*shape, 2)
    ).astype(np.float32)
    chosen = random.random((*shape, 2)) < 0.4
    values[chosen] = random.choice(np.array(special, np.float32), chosen.sum())
    if single:
        return np.where(random.random(shape) < 0.3, bits, values[..., 0].view(np.uint32))
    return np.where(random.random(shape) < 0.3, bits, _pairs(values, letter == "h"))


def _pairs(values, half):
    """Two float16 or (cut short) bfloat16 a word."""
    with np.errstate(over="ignore"):
        low = (
            values.astype(np.float16).view(np.uint16)
            if half
            else (values.view(np.uint32) >> 16).astype(np.uint16)
        )
    return low[..., 0].astype(np.uint32) | low[..., 1].astype(np.uint32) << 16


def floats(words, letter):
    """float64 `[..., 2]` (`[..., 1]` of float32) of words of this letter."""
    parts = np.stack([words & 0xFFFF, words >> 16], axis=-1)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        if letter in "fF":
            return words.view(np.float32)[..., None].astype(np.float64)
        if letter in "hH":
            return parts.astype(np.uint16).view(np.float16).astype(np.float64)
        return (parts.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def differs(letter, got, want):
    """Where two arrays of words of this letter are not the same: in any bit, but for NaNs' and what tensor cores round."""
    if letter not in "fhbFHB":
        return got != want
    a, b = floats(got, letter), floats(want, letter)
    both = np.isnan(a) & np.isnan(b)
    if letter.isupper():
        exact = (np.arange(len(got)) % 2 == 0)[:, None, None]
        return (~both & (np.abs(a - b) > np.where(exact, 0, 1e-4))).any(-1)
    bits = a.view(np.uint64) != b.view(np.uint64)
    return (bits & ~both).any(-1)


class Device:
    """A driver and the compiled source, for as long as this process lives."""

    def __init__(self, ordinal=0):
        self.driver = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ordinal)
        self._call("cuCtxSetCurrent", context)
        name = ctypes.create_string_buffer(100)
        self._call("cuDeviceGetName", name, 100, ordinal)
        nvrtc = find_nvrtc()[0]
        self.arch = _rquant.cuda_device(ordinal)[0]
        self.name = f"{name.value.decode()}, {self.arch}, NVRTC {_rquant.cuda_nvrtc_version(nvrtc)}"
        image, _ = _rquant.cuda_compile_text(
            nvrtc, "selftest.cu", SOURCE.read_text(), ["-DVARIANT="], self.arch
        )
        self.module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(self.module), image)

    def _call(self, name, *arguments):
        code = getattr(self.driver, name)(*arguments)
        if code:
            raise RuntimeError(f"{name}: error {code}")

    def run(self, name):
        """Outputs of a primitive, uint32 `[blocks, lanes, words]`."""
        given = np.ascontiguousarray(inputs(name))
        out = np.full((BLOCKS, LANES, len(primitives()[name][1])), 0xDEADBEEF, np.uint32)
        function, places = ctypes.c_void_p(), [ctypes.c_uint64() for _ in range(2)]
        self._call("cuModuleGetFunction", ctypes.byref(function), self.module, f"selftest_{name}".encode())
        for place, array in zip(places, (given, out), strict=True):
            self._call("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(array.nbytes))
            self._call(
                "cuMemcpyHtoD_v2", place, array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(array.nbytes)
            )
        pointers = (ctypes.c_void_p * 2)(*(ctypes.addressof(place) for place in places))
        self._call("cuLaunchKernel", function, BLOCKS, 1, 1, LANES, 1, 1, SHARED, None, pointers, None)
        self._call("cuCtxSynchronize")
        self._call(
            "cuMemcpyDtoH_v2", out.ctypes.data_as(ctypes.c_void_p), places[1], ctypes.c_size_t(out.nbytes)
        )
        for place in places:
            self._call("cuMemFree_v2", place)
        return out


def write(path, ordinal=0):
    """Inputs and outputs of every primitive on this machine's GPU, and its name, into an .npz; the name."""
    device = Device(ordinal)
    arrays = {"device": np.array(device.name)}
    for name in primitives():
        arrays |= {f"in_{name}": inputs(name), f"out_{name}": device.run(name)}
    temporary = Path(path).with_suffix(f".{os.getpid()}.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(path)
    return device.name


if __name__ == "__main__":
    print(write(sys.argv[1] if len(sys.argv) > 1 else GOLDEN))
