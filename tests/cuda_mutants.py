"""Breaks the kernels' sources by rule, one place at a time, and says which breaks the checks miss.

`python tests/cuda_mutants.py [what]` tries all; a sample of as many as `what` says, always the same; or those with `what` in
"file rule: line". Exit status 1 unless those that survive are exactly those of cuda_survivors.py. A mutant is compiled for codes of 4 bits and float16 first (others where its line is of
theirs), and for all if it survives; only the checks that run its kernels are tried (cuda_checks.py, in cuda_judge.py).
"""

import itertools
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cuda_emulator
from cuda_survivors import SURVIVORS

WORKERS = 2
OPS = (
    "dequantize",
    "float8",
    "bitpack",
    "quantize_rows",
    "gather_rows",
    "linear",
    "linear_old",
    "linear_int8",
)
OPS += ("linear_int8_old", "outliers", "outlier_products")

CONDITION = r"\((?:[^();{}]|\([^()]*\))*\)"
# name: pattern, and what takes its place. Each place is a mutant.
RULES = {
    "no barrier": (r"sync_(?:block|warp)\(\);", r"/* \g<0> */"),
    "waits for one less": (r"copies_wait<([^>]+)>", r"copies_wait<\1 + 1>"),
    "waits for one more": (r"copies_wait<([^>]+)>", r"copies_wait<\1 - 1>"),
    "no commit": (r"copies_commit\(\);", r"/* \g<0> */"),
    "fills the wrong stage": (r"\+ STAGES - 1\) % STAGES", r"+ STAGES) % STAGES"),
    "indices swapped": (r"(?<=\w)\[([a-z][^\[\]]*)\]\[([a-z0-9][^\[\]]*)\]", r"[\2][\1]"),
    "inner indices swapped": (r"(?<=\])\[([a-z][^\[\]]*)\]\[([a-z0-9][^\[\]]*)\]", r"[\2][\1]"),
    "no mask": (r" & (?:0x[0-9a-f]+|MASK|\(\(1 << BITS\) - 1\))", ""),
    "bytes in another order": (r"(0x[0-7]{2})([0-7])([0-7])\b", r"\1\3\2"),
    "another constant": (r"(0x[0-9a-f]{4})([0-9a-f]{3})([0-9a-e])\b(?!;  // )", r"\g<1>\g<2>f"),
    "another exponent": (r"(0x[4-6])([0-9a-f])00u", r"\g<1>800u"),
    "/ for %": (r"(\b[ei]) % 2", r"\1 / 2"),
    "% for /": (r"(\b[ei]) / 2", r"\1 % 2"),
    "no early end": (rf"if {CONDITION} (?:return|continue|break);", r"/* \g<0> */"),
    "no condition": (rf"if (?=[^;{{}}]*?[<>]){CONDITION} (?!return|continue|break|\{{)", "if (true) "),
    "rows 4 apart": (r"8 \* (\(?[eir])", r"4 * \1"),
    "a neighbour's k": (r"\bt \* (8|2)\b", r"(t ^ 1) * \1"),
    "no zero point": (
        r"zero\[j\]\[e % 2\] \* sum|z\[i / 2\] \* sum|\(u32\)z\.whole \* \(u32\)sum",
        "0 * sum",
    ),
    "no end of a group": (r"^( +)(finish_group\(\);)$", r"\1/* \2 */"),
    "another group": (r"group\.now, ", "0, "),
    "no offset": (r"1u? << \(BITS - 1\)", "1u << (BITS - 2)"),
    "no swizzle": (r"\(chunk \^ .*\)(?=;)", "chunk"),
    "another swizzle to read": (r"(return tile \+ place_of_chunk<BYTES, CHUNKS>\()row", r"\1row ^ 4"),
    "a row less": (r"(first_row \+ row) < m\.rows", r"\1 < m.rows - 1"),
    "a byte less": (r"left > 16 \? 16", "left > 15 ? 15"),
    "another divisor": (r", 127\)", ", 128)"),
    "rounds elsewhere": (r"next = \(group \+ 1\)", "next = (group + 2)"),
}


def sources(folder):
    """Files of kernels, and of what they include."""
    return sorted(path for path in Path(folder).glob("*.cu*") if path.name != "selftest.cu")


def mutants(folder):
    """(file, rule, line number, the line as it becomes, the whole text changed) of every place that a rule fits."""
    for path in sources(folder):
        text, begin = path.read_text(), 0
        if path.name == "common.cuh":  # the emulator has the rest
            begin = text.index("#endif  // RQUANT_EMULATOR")
        for rule, (pattern, change) in RULES.items():
            for match in re.compile(pattern, re.MULTILINE).finditer(text, begin):
                start = text.rfind("\n", 0, match.start()) + 1
                if "//" in text[start : match.start()] or text[start:].startswith("#define"):
                    continue
                changed = text[: match.start()] + match.expand(change) + text[match.end() :]
                if changed != text:
                    line = changed[start : changed.index("\n", match.start())].strip()
                    yield path.name, rule, text.count("\n", 0, start) + 1, line, changed


def variants(file, text, line):
    """Bits of codes and types of activations that a change in this place concerns first."""
    lines = text.splitlines()
    structs = re.findall(r"^(?:template <> )?struct (\w+(?:<\d>)?)", "\n".join(lines[:line]), re.MULTILINE)
    kinds = {int(bits) for bits in re.findall(r"BITS [=!]= (\d)", lines[line - 1])}
    if structs and (codes := re.fullmatch(r"Codes<(\d)>", structs[-1])):
        kinds = {int(codes[1])}
    if file == "weights.cuh" and structs[-1:] in (["Half"], ["Brain"]):
        kinds |= {8} if "bytes<" in lines[line - 1] or "bytes<" in lines[line - 2] else {4, 2}
    return kinds or {4}, {"bfloat16"} if structs[-1:] == ["Brain"] else {"float16"}


class Judge:
    """A copy of the sources to break, and a process with torch that tells whether they pass."""

    def __init__(self, folder):
        self.folder, self.copy = folder, Path(tempfile.mkdtemp(dir=folder)) / "cuda"
        shutil.copytree(cuda_emulator.SOURCES, self.copy)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, str(Path(__file__).parent / "cuda_judge.py")]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=env, text=True, **pipes)

    def build(self, kinds, halves):
        """The emulator of the copy, for these variants; None if it does not compile."""
        chosen = cuda_emulator.of_variants(kinds, halves, self.copy)
        try:
            return cuda_emulator.build(self.copy, chosen, self.folder / "built")
        except AssertionError:
            return None

    def passes(self, built, order, op, kind, half, trace="-"):
        """Whether a check passes in this emulator."""
        cache = tempfile.mkdtemp(dir=self.folder)
        print(built, cache, order, op, kind, half, trace, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().strip()
        shutil.rmtree(cache)
        assert answer, "the judge is dead"
        return answer == "True"

    def fate(self, ops, kinds, halves, orders):
        """Of the copy under the checks of these ops and variants, until the first that fails."""
        if (built := self.build(kinds, halves)) is None:
            return "does not compile"
        every = itertools.product(orders, sorted(kinds), sorted(halves), ops)
        passed = all(self.passes(built, order, op, kind, half) for order, kind, half, op in every)
        return "survives" if passed else "caught"

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def users(folder, file):
    """Files of kernels that a file is in."""
    included = {
        path.name: set(re.findall(r'#include "([\w.]+)"', path.read_text())) for path in sources(folder)
    }
    found = {file}
    while new := {name for name, of in included.items() if of & found} - found:
        found |= new
    return {name for name in found if name.endswith(".cu")}


def reach(judge):
    """Which files' kernels each op's check runs; the sources as they are must pass."""
    built, files = judge.build({4}, {"float16"}), {}
    assert built is not None, "the sources as they are do not compile"
    of_kernel = {kernel: file for _, file, _, kernels, _ in cuda_emulator.rows() for kernel in kernels}
    for op in OPS:
        trace = judge.folder / f"{op}.launches"
        trace.touch()
        assert judge.passes(built, "0", op, 4, "float16", trace), f"the sources as they are fail: {op}"
        files[op] = {of_kernel[line.split()[0]] for line in trace.read_text().splitlines()}
    missing = {file for _, file, *_ in cuda_emulator.rows()[:-1]} - set().union(*files.values())
    assert not missing, f"no check in cuda_checks.py runs the kernels of {sorted(missing)}"
    return files


def main(what=None):
    """Try all, or those of `what`; print their fates, and what is otherwise than cuda_survivors.py says."""
    survived, tried = set(), set()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(WORKERS) as pool:
        judges = queue.SimpleQueue()
        every = list(mutants(cuda_emulator.SOURCES))
        random.Random(0).shuffle(every)  # whatever part was tried, it is of all kinds
        chosen = [one for one in every if not what or what in f"{one[0]} {one[1]}: {one[3]}"]
        if what and what.isdecimal():
            chosen = every[: int(what)]
        for _ in range(min(WORKERS, len(chosen))):
            judges.put(Judge(Path(temporary)))
        first = judges.get()
        files = reach(first)
        judges.put(first)

        def judge(mutant):
            file, _rule, line, _, text = mutant
            one = judges.get()
            whole = (one.copy / file).read_text()
            ops = [op for op in OPS if files[op] & users(one.copy, file)]
            (one.copy / file).write_text(text)
            try:
                fate = one.fate(ops, *variants(file, whole, line), ("0", "1"))
                if fate == "survives":
                    fate = one.fate(ops, {8, 4, 2}, {"float16", "bfloat16"}, ("7",))
                return fate
            finally:
                (one.copy / file).write_text(whole)
                judges.put(one)

        fates = Counter()
        for number, (mutant, fate) in enumerate(zip(chosen, pool.map(judge, chosen), strict=True)):
            file, rule, line, becomes, _ = mutant
            fates[fate] += 1
            tried.add((file, rule, becomes))
            if fate == "survives":
                survived.add((file, rule, becomes))
                fate = f"SURVIVES: {SURVIVORS.get((file, rule, becomes), 'why?')}"
            print(f"{number + 1}/{len(chosen)} {file}:{line} {rule}: {becomes}: {fate}", flush=True)
        while not judges.empty():
            judges.get().close()
    new = survived - SURVIVORS.keys()
    gone = (SURVIVORS.keys() & tried if what else SURVIVORS.keys()) - survived
    for key in sorted(new):
        print("not known to survive:", key)
    for key in sorted(gone):
        print("said to survive:", key)
    print(", ".join(f"{count} {fate}" for fate, count in fates.items()))
    return new | gone


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:]) else 0)
