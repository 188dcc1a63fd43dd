"""Breaks the kernels' sources by rule, one place at a time, and says which breaks the comparison with plain torch misses.

`python tests/cuda_mutants.py [count]` tries all, or a sample; exit status 1 if one survives that is not in KNOWN.
A mutant is built for the variants of 4 bits and float16 alone (8 and 2 bits where its line is of theirs), and run in a fork.
"""

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cuda_emulator

# name: pattern, and what takes its place. Each place is a mutant.
RULES = {
    "no barrier": (r"sync_(?:block|warp)\(\);", ""),
    "waits for one less": (r"copies_wait<([^>]+)>", r"copies_wait<\1 + 1>"),
    "no commit": (r"copies_commit\(\);", ""),
    "fills the wrong stage": (r"\+ STAGES - 1\) % STAGES", r"+ STAGES) % STAGES"),
    "bytes in another order": (r"(0x[0-7]{2})([0-7])([0-7])\b", r"\1\3\2"),
    "another constant": (r"(0x[0-9a-f]{4})([0-9a-f]{3})([0-9a-e])\b(?!;  // )", r"\g<1>\g<2>f"),
    "another exponent": (r"(0x[4-6])([0-9a-f])00u", r"\g<1>800u"),
    "/ for %": (r"(\b[ei]) % 2", r"\1 / 2"),
    "% for /": (r"(\b[ei]) / 2", r"\1 % 2"),
    "no bound": (r"if \((?:row|g|col|token|k0|at|k0 \+ i) (?:<|>=) [^)]+\)", "if (true)"),
    "no end of k": (r"if \(block >= blocks\) break;", ""),
    "rows 4 apart": (r"8 \* (\(?[eir])", r"4 * \1"),
    "a neighbour's k": (r"\bt \* (8|2)\b", r"(t ^ 1) * \1"),
    "no zero point": (
        r"zero\[j\]\[e % 2\] \* sum|z\[i / 2\] \* sum|\(u32\)z\.whole \* \(u32\)sum",
        "0 * sum",
    ),
    "no end of a group": (r"^( +)finish_group\(\);$", r"\1;"),
    "another group": (r"group\.now, ", "0, "),
    "no offset": (r"1u? << \(BITS - 1\)", "1u << (BITS - 2)"),
    "another swizzle to read": (r"(return tile \+ place_of_chunk<BYTES, CHUNKS>\()row", r"\1row ^ 4"),
    "a row less": (r"(first_row \+ row) < m\.rows", r"\1 < m.rows - 1"),
    "a byte less": (r"left > 16 \? 16", "left > 15 ? 15"),
    "another divisor": (r", 127\)", ", 128)"),
    "rounds elsewhere": (r"next = \(group \+ 1\)", "next = (group + 2)"),
}
FILES = (
    "weights.cuh",
    "tile.cuh",
    "linear_small.cu",
    "linear_tiled.cu",
    "linear_int8.cu",
    "quantize_rows.cu",
    "dequantize.cu",
    "bitpack.cu",
)
# Survivors, each with the reason.
KNOWN = {
    (
        "linear_small.cu",
        "no bound",
        "if (g < m)",
    ): "reads rows beyond m, whose products are not stored; the emulator does not know where global memory ends",
}

CHECK = """
import resource, traceback
def guarded(shape, dtype, around=77):
    size = 1
    for s in shape: size *= s
    whole = torch.full((size + 128,), around, dtype=dtype)
    return whole[64 : 64 + size].view(shape), whole

def intact(whole):
    assert (whole[:64] == 77).all() and (whole[-64:] == 77).all(), "written beyond the end"

def check(kinds, half, sources):
    torch.manual_seed(1)
    for kind, (n, k), symmetric, group in itertools.product(kinds, ((70, 320), (17, 132), (9, 97)), (True, False), (32, -1)):
        q = _native.quantize(torch.randn(n, k) + 0.3, kind, group, symmetric)
        scale, _ = guarded(tuple(q.scale.shape), q.scale.dtype, torch.nan)
        q = q._replace(scale=scale.copy_(q.scale))
        floats = reference.dequantize_canonical(*q, torch.float32)
        if "dequantize" in sources:
            for dtype in (torch.float32, torch.float16):
                out, whole = guarded((n, k), dtype)
                _native_cuda.dequantize(q, out)
                assert torch.equal(out, floats.to(dtype))
                intact(whole)
        if "bitpack" in sources:
            codes, (out, whole) = _native.unpack_codes(q), guarded((n, k), torch.int8)
            assert torch.equal(_native_cuda.unpack_codes(q, out), codes)
            intact(whole)
            out, whole = guarded(tuple(q.codes.shape), torch.uint8)
            assert torch.equal(_native_cuda.pack_codes(codes, kind, out), q.codes)
            intact(whole)
        for m in (3, 8, 14, 50):
            x, bias = torch.randn(m, k).to(half), torch.randn(n).to(half)
            if "quantize_rows" in sources:
                (codes, whole), (scale, more) = guarded((m, k), torch.int8), guarded((m,), torch.float32)
                _native_cuda.quantize_rows(x, None, codes, scale)
                want = reference.quantize_rows(x)
                assert torch.equal(codes, want[0]) and torch.equal(scale, want[1])
                intact(whole), intact(more)
            if ("linear_small" if m <= 8 else "linear_tiled") in sources:
                out, whole = guarded((m, n), half)
                _native_cuda.linear(x, q, bias, out)
                want = x.double() @ floats.double().T + bias.double()
                assert (out - want).norm() / want.norm() < (5e-4 if half == torch.float16 else 4e-3)
                intact(whole)
            if "linear_int8" in sources:
                codes, scale = reference.quantize_rows(x)
                out, whole = guarded((m, n), torch.float32)
                _native_cuda.linear_int8(codes, scale, q, bias, out)
                assert torch.equal(out, cpu.linear_canonical(x.float(), *q[:3], bias, k, kind, group, True))
                intact(whole)
    before = state()
    assert not before[3], "bank conflicts"

def survives(folder, cache, kinds, half, sources, order):
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.environ["RQUANT_EMULATOR_ORDER"] = order
            global driver
            driver = ctypes.CDLL(folder + "/libcuda.so.1", mode=ctypes.RTLD_GLOBAL)  # found by its name from here on
            os.environ["RQUANT_NVRTC"] = folder + "/libnvrtc.so.0"
            os.environ["RQUANT_CACHE_DIR"] = cache
            assert cuda.ready()
            check(kinds, half, sources)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0

for line in sys.stdin:
    folder, cache, kinds, half, sources = line.split()
    half = {"f16": torch.float16, "bf16": torch.bfloat16}[half]
    kinds, sources = [int(kind) for kind in kinds.split(",")], sources.split(",")
    print(all(survives(folder, cache, kinds, half, sources, order) for order in ("0", "1")), flush=True)
"""


def mutants(sources):
    """(file, rule, line number, the line changed, the whole text changed) of every place that a rule fits."""
    for file in FILES:
        text = (sources / file).read_text()
        for rule, (pattern, change) in RULES.items():
            for match in re.finditer(pattern, text, re.MULTILINE):
                start = text.rfind("\n", 0, match.start()) + 1
                if "//" in text[start : match.start()] or text[start:].startswith("#define"):
                    continue
                changed = text[: match.start()] + match.expand(change) + text[match.end() :]
                if changed != text:
                    yield file, rule, text.count("\n", 0, start) + 1, match[0], changed


def variants(file, text, line):
    """Widths, type of activations and sources that a change in this place concerns."""
    codes = re.findall(
        r"Codes<(\d)>;?$|struct Codes<(\d)>", "\n".join(text.splitlines()[:line]), re.MULTILINE
    )
    near = [int(a or b) for a, b in codes]
    kinds = [near[-1]] if file == "weights.cuh" and near else [4]
    if file == "weights.cuh" and "bytes<I>" not in text.splitlines()[line - 1]:
        kinds = sorted({*kinds, 8, 2})
    users = {"weights.cuh": ["linear_small", "linear_int8"], "tile.cuh": ["linear_tiled"]}
    structs = re.findall(r"^struct (\w+)", "\n".join(text.splitlines()[:line]), re.MULTILINE)
    half = "bf16" if structs[-1:] == ["Brain"] else "f16"
    return kinds, half, users.get(file, [Path(file).stem])


class Judge:
    """A process with torch that tells survivors."""

    def __init__(self, folder):
        script = cuda_emulator.BEGIN.replace("assert cuda.ready()\n", "").replace(
            'driver = ctypes.CDLL("libcuda.so.1")\n', ""
        )
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", script + CHECK], env=env, text=True, **pipes)
        self.folder = Path(folder)

    def survives(self, sources, kinds, half, names):
        """Whether the sources in this folder pass."""
        modules = [
            f"{name}_{kind}{'_f16' if name in ('linear_small', 'linear_tiled') else ''}"
            for name in names
            for kind in kinds
        ]
        modules += ["linear_int8_8_symmetric"] * ("linear_int8" in names and 8 in kinds)
        modules = ["quantize_rows"] if names == ["quantize_rows"] else modules
        try:
            built = cuda_emulator.build(sources, modules, self.folder / "built")
        except AssertionError:
            return False  # it does not compile, which is noticed
        cache = tempfile.mkdtemp(dir=self.folder)
        print(
            built,
            cache,
            ",".join(map(str, kinds)),
            half,
            ",".join(names),
            file=self.process.stdin,
            flush=True,
        )
        answer = self.process.stdout.readline().strip()
        assert answer, "the judge is dead"
        shutil.rmtree(built)
        return answer == "True"


def main(count=None):
    """Try all, or `count` by chance; print survivors and return those that should not have survived."""
    left = []
    with tempfile.TemporaryDirectory() as temporary:
        judge = Judge(temporary)
        copy = Path(temporary) / "cuda"
        shutil.copytree(cuda_emulator.SOURCES, copy)
        names = ["linear_small", "linear_tiled", "linear_int8", "dequantize", "bitpack"]
        assert judge.survives(copy, [8, 4, 2], "f16", names), "the sources as they are fail"
        assert judge.survives(copy, [4], "f16", ["quantize_rows"]), "the sources as they are fail"
        every = list(mutants(copy))
        chosen = every if count is None else random.Random(0).sample(every, count)
        for number, (file, rule, line, what, text) in enumerate(chosen):
            whole = (copy / file).read_text()
            (copy / file).write_text(text)
            survived = judge.survives(copy, *variants(file, text, line))
            (copy / file).write_text(whole)
            reason = KNOWN.get((file, rule, what))
            if survived and reason is None:
                left.append((file, rule, line, what))
            fate = f"survives: {reason or 'WHY?'}" if survived else "caught"
            print(f"{number + 1}/{len(chosen)} {file}:{line} {rule}: {what.strip()}: {fate}", flush=True)
        judge.process.stdin.close()
        judge.process.wait()
    return left


if __name__ == "__main__":
    sys.exit(1 if main(*map(int, sys.argv[1:])) else 0)
