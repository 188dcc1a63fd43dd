"""The instructions that CUDA kernels are made of: the emulator's against numpy, and against a GPU's own outputs."""

import os
import re
import subprocess
import sys

import cuda_emulator
import cuda_selftest
import numpy as np
import pytest

PRIMITIVES = cuda_selftest.primitives()


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """Arrays that the emulator's run has written, through the same driver calls as a GPU's."""
    if cuda_emulator.COMPILER is None:
        pytest.skip("no C++ compiler for the emulator")
    driver = cuda_emulator.build(modules=["selftest"])
    path = tmp_path_factory.mktemp("selftest") / "emulated.npz"
    env = {**os.environ, "LD_LIBRARY_PATH": str(driver), "RQUANT_NVRTC": str(driver / "libnvrtc.so.0")}
    done = subprocess.run(
        [sys.executable, cuda_selftest.__file__, str(path)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(np.load(path))


def product(a, b, halves):
    """What `mma` is by NVIDIA's description: of 16 x k and k x 8 matrices, whose elements lanes hold so."""
    lane = np.arange(32)
    g, t = lane // 4, lane % 4
    per = a.shape[-1]  # elements in a word
    left = np.empty((len(a), 16, 8 * per))
    right = np.empty((len(a), 8 * per, 8))
    for e in range(per):
        for i in range(4):
            left[:, g + 8 * (i % 2), t * per + e + 4 * per * (i // 2)] = a[:, :, i, e]
        for i in range(2):
            right[:, t * per + e + 4 * per * i, g] = b[:, :, i, e]
    whole = left @ right
    return np.stack([whole[:, g + 8 * (i // 2), t * 2 + i % 2] for i in range(4)], axis=-1)


def float_words(values):
    return np.asarray(values, np.float64).astype(np.float32).view(np.uint32)


def reference(name, x):
    """The outputs as numpy computes them from the words; None of what is a rounding of its own."""
    word = [x[..., i] for i in range(x.shape[-1])]
    lanes = np.arange(32)
    if name.startswith("mma_") and name != "mma_s8":
        letter = PRIMITIVES[name][0][4]
        values = cuda_selftest.floats(x[..., 4:], letter)
        sums = product(values[:, :, :4], values[:, :, 4:], 2)
        return float_words(cuda_selftest.floats(x[..., :4], "f")[..., 0] + sums)
    if name == "mma_s8":
        values = np.stack([(x[..., 4:] >> 8 * i).astype(np.uint8).view(np.int8) for i in range(4)], axis=-1)
        sums = product(values[:, :, :4], values[:, :, 4:], 4).astype(np.int64)
        return (x[..., :4] + sums).astype(np.uint32)
    if name in ("fma_f16x2", "fma_bf16x2"):
        letter = PRIMITIVES[name][0][0]
        a, b, c = (cuda_selftest.floats(w, letter) for w in word)
        with np.errstate(all="ignore"):
            sums = (a * b + c).astype(np.float16)
        if letter == "b":
            return None
        halves = sums.view(np.uint16).astype(np.uint32)
        return (halves[..., 0] | halves[..., 1] << 16)[..., None]
    if name == "pick_bytes":
        both = (word[1].astype(np.uint64) << 32) | word[0]
        digits = [((word[2] >> 4 * i) & 7).astype(np.uint64) for i in range(4)]
        return sum(((both >> 8 * d) & 255) << 8 * i for i, d in enumerate(digits)).astype(np.uint32)[
            ..., None
        ]
    if name == "dot_bytes":
        a, b = (np.ascontiguousarray(x[..., i : i + 1]).view(np.int8).astype(np.int64) for i in range(2))
        return (word[2] + (a * b).sum(-1)).astype(np.uint32)[..., None]
    if name in ("copy_async16", "copy_async4"):
        data = x[..., : 4 if name == "copy_async16" else 1]
        kept = word[4 if name == "copy_async16" else 1] // (1 if name == "copy_async16" else 4)
        as_bytes = np.ascontiguousarray(data).view(np.uint8)
        as_bytes = np.where(np.arange(as_bytes.shape[-1]) < kept[..., None], as_bytes, 0).astype(np.uint8)
        return np.ascontiguousarray(as_bytes[:, ::-1]).view(np.uint32)
    if name == "load_shared":
        y = x[:, lanes ^ 5]
        return np.concatenate([y, y[..., 1:2] >> 16, y[..., 3:4], y[..., 2:4]], axis=-1)
    simple = {
        "and_or": lambda: (word[0] & word[1]) | word[2],
        "andn_or": lambda: (~word[0] & word[1]) | word[2],
        "float_of_f16": lambda: float_words(cuda_selftest.floats(word[0], "h")[..., 0]),
        "float_of_bf16": lambda: word[0] << 16,
        "f16_of_float": lambda: word[0].view(np.float32).astype(np.float16).view(np.uint16).astype(np.uint32),
        "multiply": lambda: (word[0].view(np.float32) * word[1].view(np.float32)).view(np.uint32),
        "divide": lambda: (word[0].view(np.float32) / word[1].view(np.float32)).view(np.uint32),
        "int_of_float": lambda: (
            np.nan_to_num(np.clip(np.rint(word[0].view(np.float32).astype(np.float64)), -(2**31), 2**31 - 1))
            .astype(np.int64)
            .astype(np.uint32)
        ),
        "sync_warp": lambda: word[0][:, ::-1],
    }
    if name in simple:
        with np.errstate(all="ignore"):
            return simple[name]()[..., None]
    if name == "shuffle_xor":
        return np.stack([word[0][:, lanes ^ 1 << i] for i in range(5)], axis=-1)
    return x if name in ("load_global8", "load_global16", "copies_wait") else None


@pytest.mark.parametrize("name", PRIMITIVES)
def test_the_emulator_is_what_the_description_says(emulated, name):
    letters, (given, got) = PRIMITIVES[name][1], (emulated[f"in_{name}"], emulated[f"out_{name}"])
    assert not (got == 0xDEADBEEF).all()
    want = reference(name, given)
    if want is None:
        assert name in ("fma_float", "fma_bf16x2", "bf16_of_float")  # numpy has none that rounds once
        return
    letters = letters.replace("u", "h") if name == "f16_of_float" else letters  # any NaN
    for i, letter in enumerate(letters):
        wrong = cuda_selftest.differs(letter, got[..., i], want[..., i])
        at = np.argwhere(wrong)[:3].tolist()
        assert not at, (at, [(given[b, lane], hex(got[b, lane, i]), hex(want[b, lane, i])) for b, lane in at])


@pytest.mark.skipif(
    not cuda_selftest.GOLDEN.exists(),
    reason="no GPU has written its outputs yet: `python tests/cuda_selftest.py` on one does",
)
@pytest.mark.parametrize("name", PRIMITIVES)
def test_the_emulator_is_what_a_gpu_does(emulated, name):
    """Bit for bit, but for the order in which tensor cores add up fractions."""
    golden = np.load(cuda_selftest.GOLDEN)
    assert np.array_equal(golden[f"in_{name}"], emulated[f"in_{name}"]), (
        "other inputs: write them anew on a GPU"
    )
    for i, letter in enumerate(PRIMITIVES[name][1]):
        got, want = emulated[f"out_{name}"][..., i], golden[f"out_{name}"][..., i]
        assert not cuda_selftest.differs(letter, got, want).any(), (str(golden["device"]), name, i)


def test_every_instruction_has_a_primitive():
    """What has PTX, or an intrinsic of CUDA's, is in selftest.cu."""
    header = (cuda_emulator.SOURCES / "common.cuh").read_text()
    header = header[header.index("\n#else\n") : header.index("#endif  // RQUANT_EMULATOR")]
    functions = re.split(r"^(?:template <[^>]+> )?DEVICE ", header, flags=re.MULTILINE)[1:]
    names = {re.search(r"(\w+)\(", text)[1] for text in functions if re.search(r"\basm\b|__[a-z]\w+\(", text)}
    assert len(names) > 15
    source = cuda_selftest.SOURCE.read_text()
    used_by_others = {"shared_address", "float_of_bits", "bits_of_float"}
    assert {name for name in names if not re.search(rf"\b{name}\b", source)} <= used_by_others
