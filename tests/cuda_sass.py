"""The instructions of a compiled kernel, and those that its source means.

A source means what it calls: from a kernel's text, through the functions of our headers, to the wrappers of common.cuh.
"""

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import cuda_emulator

# of a wrapper, what it should have become
MEANT = {
    "mma_f16": "HMMA.16816.F32",
    "mma_bf16": "HMMA.16816.F32",
    "dot_bytes": "IDP.4A.S8.S8",
    "mma_s8": "IMMA.16832.S8.S8",
    "copy_async16": "LDGSTS.E.BYPASS",
    "copy_async4": "LDGSTS.E",
    "copies_commit": "LDGDEPBAR",
    "copies_wait": "DEPBAR.LE",
    "load_global16": "LDG.E.128",
    "load_global8": "LDG.E.64",
    "load_shared16": "LDS.128",
    "load_matrix": "LDSM.16.M88.4",
    "shuffle_xor": "SHFL.BFLY",
    "sync_block": "BAR.SYNC",
}
SPILLS = ("STL", "LDL")


@cache
def disassembler():
    """nvdisasm's path, of NVIDIA's package or the system's; or None."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(root).glob("cu*/bin/nvdisasm"), reverse=True):
            return str(path)
    return shutil.which("nvdisasm")


def instructions(cubin):
    """How often each kernel of a cubin's file has each instruction, with its modifiers."""
    listing = subprocess.run(
        [disassembler(), "-c", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    parts = re.split(r"^//-+ \.text\.(\w+) +-+$", listing, flags=re.MULTILINE)
    code = r"^\s+/\*[0-9a-f]+\*/\s+(?:\{ *)?(?:@!?U?P\w+ +)?([A-Z][\w.]+)"
    return {
        name: Counter(re.findall(code, part, re.MULTILINE))
        for name, part in zip(parts[1::2], parts[2::2], strict=True)
    }


def has(found, instruction):
    """How often there is this instruction, or one with more modifiers."""
    return sum(n for name, n in found.items() if name == instruction or name.startswith(f"{instruction}."))


def _included(name):
    """This file of ours, and those that it includes."""
    text = (cuda_emulator.SOURCES / name).read_text()
    inner = [other for other in re.findall(r'#include "([\w.]+)"', text) if other != "emulator.hpp"]
    return {name}.union(*map(_included, inner))


@cache
def _definitions(file):
    """Text of each function by name, of a file; of kernels, whose names macros complete, by what is there."""
    found = {}
    for path in sorted(cuda_emulator.SOURCES / name for name in _included(file)):
        text = re.sub(r"//.*", "", path.read_text())
        if path.name == "common.cuh":
            text = text[text.index("\n#else\n") :]
        starts = [
            match
            for match in re.finditer(r"\bDEVICE [^;={]*?\b(\w+)\(|\bKERNEL\((\w+)", text)
            if not text[: match.start()].endswith("#define ")
        ]
        for match, after in zip(starts, [*starts[1:], None], strict=True):
            body = text[match.end() : after.start() if after else len(text)]
            found[match[1] or match[2]] = found.get(match[1] or match[2], "") + body
    return found


def meant(kernel):
    """Instructions that a kernel, by its full name, should have."""
    known = _definitions(next(file for _, file, _, kernels, _ in cuda_emulator.rows() if kernel in kernels))
    root = max((name for name in known if kernel.startswith(name)), key=len)
    seen, left = set(), [root]
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left += [other for other in set(re.findall(r"(\w+)(?=[(<])", known[name])) if other in known]
    return {MEANT[name] for name in seen & MEANT.keys()}
