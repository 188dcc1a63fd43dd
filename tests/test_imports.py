"""Who may import whom: the house's layers, held over Rust's `crate::` paths and Python's imports."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

_WEIGHT = {"matrix", "bitpack", "qtype", "error"}
_WORK = {"cpu", "executor", "floats", "buffer"}
RUST = {
    "error": set(),
    "executor": set(),
    "floats": set(),
    "buffer": {"error"},
    "qtype": {"error"},
    "bitpack": {"qtype", "error"},
    "matrix": {"bitpack", "qtype", "error"},
    "cpu": {"qtype", "error"},
    "cpu/": {"cpu", "qtype"},  # one instruction set: bytes in, int32 out
    "quantize": _WEIGHT | _WORK,
    "dequantize": _WEIGHT | _WORK,
    "prepack": _WEIGHT | _WORK,
    "epilogue": {"prepack"} | _WEIGHT | _WORK,
    "gemm": {"prepack", "epilogue", "quantize"} | _WEIGHT | _WORK,  # never cuda
    "cuda": {"matrix", "qtype", "error"},
}


def crate_names(code: str) -> set[str]:
    """What follows `crate::`, in the form `crate::{a, b::{c, d}}` too."""
    names = set(re.findall(r"\bcrate::(\w+)", code))
    for group in re.findall(r"\bcrate::\{(.*?)\};", code, re.DOTALL):
        names |= set(re.findall(r"(?:^|,)\s*(\w+)", re.sub(r"::\{[^{}]*\}", "", group)))
    return names


def rust_imports() -> dict[Path, tuple[str, set[str]]]:
    """Each file of the core: its row in the table, and the modules it names (tests aside)."""
    core, found = ROOT / "rust/core", {}
    for path in sorted(core.rglob("*.rs")):
        folder, *inner = path.relative_to(core).with_suffix("").parts
        if path.stem in ("lib", "tests", "conformance"):
            continue
        code = re.sub(r"//.*", "", path.read_text(encoding="utf-8")).split("#[cfg(test)]\nmod tests {")[0]
        row = "cpu/" if folder == "cpu" and inner != ["mod"] else folder
        found[path] = row, crate_names(code) - {folder}
    return found


def test_rust_layers():
    files = rust_imports()
    assert {row for row, _ in files.values()} >= {"gemm", "prepack", "matrix", "cpu", "cpu/"}
    for path, (row, names) in files.items():
        assert row in RUST, f"{path}: give {row!r} a row in the table"
        assert names <= RUST[row], f"{path} may not import {sorted(names - RUST[row])}"
