"""Who may import whom: the house's layers, held over Rust's `crate::` paths and Python's imports."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

_WEIGHT = {"matrix", "bitpack", "qtype", "error"}
_WORK = {"cpu", "executor", "floats", "buffer"}
RUST = {
    "error": set(),
    "executor": set(),
    "floats": {"buffer"},
    "buffer": {"error"},
    "qtype": {"error"},
    "bitpack": {"qtype", "error"},
    "matrix": {"bitpack", "qtype", "error"},
    "cpu": {"matrix", "qtype", "error", "buffer"},
    # one instruction set: bytes in; int32 out, or floats by scales as they are stored; rows to their place
    "cpu/": {"cpu", "matrix", "buffer", "qtype"},
    "quantize": {"search"} | _WEIGHT | _WORK,
    "half_quadratic": _WEIGHT | _WORK,
    "search": {"quantize"} | _WEIGHT | _WORK,
    "dequantize": _WEIGHT | _WORK,
    "elementwise": {"error"} | _WORK,
    "observe": {"error"} | _WORK,
    "prepack": _WEIGHT | _WORK,
    "epilogue": {"prepack"} | _WEIGHT | _WORK,
    "conv": {"gemm", "prepack", "epilogue"} | _WEIGHT | _WORK,
    "gemm": {"prepack", "epilogue", "quantize"} | _WEIGHT | _WORK,  # never cuda
    "cuda": {"matrix", "qtype", "error"},
}


_OPS = {"_ops", "_native", "qtypes", "scheme"}
PYTHON = {
    "_threads": {"_rquant"},
    "qtypes": set(),
    "numerics": set(),
    "patterns": set(),
    "progress": set(),
    "table": set(),
    "viz": set(),
    "_import_hook": set(),
    "_native": {"_rquant", "_threads"},
    "cuda": {"_native", "_rquant", "io", "progress", "table"},
    "info": {"_rquant", "_threads", "cuda", "qtypes"},
    "scheme": {"_native", "qtypes"},
    "io": {"_rquant", "scheme"},
    "casting": {"_native", "qtypes"},
    "optimize": {"_native", "qtypes", "scheme"},
    "observers": {"_native", "_rquant", "qtypes"},
    "streaming": {
        "_native",
        "_rquant",
        "casting",
        "io",
        "patterns",
        "qtypes",
        "scheme",
    },
    "numpy": {"_native", "qtypes", "scheme"},
    "_backends": {
        "_native",
        "_rquant",
        "cuda",
        "optimize",
    },
    "_ops": {"_backends", "_native"},
    "_autograd": {"_ops", "qtypes"},
    "tensor": _OPS | {"optimize"},
    "_static_ops": {"_backends", "_ops"},
    "simulate": {"_native", "progress", "qtypes", "scheme", "tensor"},
    "flow": {"_import_hook", "_static_ops"},
    "_fake_quantize": {"_autograd", "_backends", "_ops", "_static_ops"},
    "nn": _OPS | {"_autograd", "_fake_quantize", "_static_ops", "casting", "flow", "optimize"},
    "fuse": {"nn", "table"},
    "rules": {"nn", "patterns", "qtypes", "scheme"},
    "outliers": {"nn"},
    "calibration": {
        "_rquant",
        "flow",
        "io",
        "nn",
        "observers",
        "patterns",
        "progress",
        "qtypes",
        "table",
        "viz",
    },
    "qat": {
        "_autograd",
        "_fake_quantize",
        "_native",
        "fuse",
        "nn",
        "observers",
        "optimize",
        "qtypes",
        "scheme",
    },
    "selection": {"nn", "patterns", "qtypes", "rules"},
    "report": {"nn", "rules", "scheme", "selection"},
    "serialize": {"_native", "_rquant", "io", "nn", "scheme"},
    "recommendation": {"nn", "report", "rules", "selection"},
    "distributed": {"_backends", "_native", "io", "nn", "serialize"},
    "model": {"_native", "nn", "progress", "qtypes", "report", "rules", "scheme", "selection"},
    "evaluate": {"_rquant", "info", "model", "nn", "progress", "qtypes", "serialize", "table", "viz"},
    "integrations": {"model", "nn", "qtypes", "report", "rules", "selection", "serialize"},
    "cli": {
        "_native",
        "_rquant",
        "evaluate",
        "info",
        "io",
        "numpy",
        "qtypes",
        "scheme",
        "streaming",
        "table",
        "viz",
    },
    "compat": {
        "_fake_quantize",
        "_native",
        "calibration",
        "fuse",
        "integrations",
        "model",
        "nn",
        "observers",
        "optimize",
        "qat",
        "qtypes",
        "report",
        "scheme",
        "selection",
        "serialize",
        "tensor",
    },
    "__main__": {"cli"},
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
        if path.stem in ("lib", "conformance") or "tests" in path.relative_to(core).parts:
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


def python_imports(path: Path) -> set[str]:
    """The modules of rquant that a file names, by their first component."""
    package, found = ("rquant", *path.relative_to(ROOT / "python/rquant").parts[:-1]), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        found |= {name[1] if len(name) > 1 else "" for name in names if name[0] == "rquant"}
    return found


def test_python_layers():
    package = ROOT / "python/rquant"
    files = {
        path: path.relative_to(package).with_suffix("").parts[0] for path in sorted(package.rglob("*.py"))
    }
    for path, row in files.items():
        if row == "__init__":
            continue
        assert row in PYTHON, f"{path}: give {row!r} a row in the table"
        names = python_imports(path) - {row}
        assert names <= PYTHON[row], f"{path} may not import {sorted(names - PYTHON[row])}"
