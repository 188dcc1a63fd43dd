"""Who may import whom in Python: `_rquant` at the bottom, addresses in one file, torch in no file that must do without."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "python/rquant"
_BOTTOM = {"_rquant", "_threads", "qtypes", "scheme"}
_OPS = {"_native", "_ops", "_autograd", *_BOTTOM}
ALLOWED = {
    "_threads": {"_rquant"},
    "qtypes": set(),
    "scheme": {"qtypes"},
    "info": {"_rquant", "_threads", "qtypes"},
    "_native": {"_rquant", "_threads"},
    "numpy": {"_native", "qtypes", "scheme"},
    "_backends": {"_native", "_rquant", "_backends"},
    "_ops": {"_backends"},
    "_autograd": {"_ops"},
    "tensor": {"_native", "_ops", "qtypes", "scheme"},
    "nn": {"_native", "_ops", "_autograd", "qtypes", "scheme", "nn"},
    "selection": {"nn"},
    "report": {"nn", "scheme", "selection"},
    "model": {"_native", "nn", "qtypes", "report", "scheme", "selection"},
    "modelmap": {"_native", "nn", "scheme", "selection"},
    "safetensors_file": set(),
    "serialize": {"_rquant", "modelmap", "nn", "safetensors_file"},
}
WITHOUT_TORCH = {"_threads", "qtypes", "scheme", "info", "_native", "numpy", "__init__"}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """(modules of ours by their first name, others), type-checking ones and those inside functions included."""
    ours, others = set(), set()
    depth = len(path.relative_to(ROOT).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level < depth:
                ours.add(path.relative_to(ROOT).parts[0])
            elif node.module:
                ours.add(node.module.split(".")[0])
            else:
                ours.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            others.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.Import):
            others.update(alias.name.split(".")[0] for alias in node.names)
    return ours, others


def files() -> dict[Path, str]:
    return {path: path.relative_to(ROOT).with_suffix("").parts[0] for path in sorted(ROOT.rglob("*.py"))}


def test_python_layers():
    seen = set()
    for path, name in files().items():
        ours, others = imports(path)
        if name != "__init__":
            seen.add(name)
            assert ours <= ALLOWED[name], f"{path} may not import {sorted(ours - ALLOWED[name])}"
        if name in WITHOUT_TORCH - {"__init__"}:
            assert "torch" not in others, f"{path} must do without torch"
    assert seen == ALLOWED.keys()


def test_addresses_are_taken_in_one_file():
    users = [path.name for path in files() if "data_ptr()" in path.read_text(encoding="utf-8")]
    assert users == ["_native.py"]


def test_files_are_short():
    lengths = sorted(len(path.read_text(encoding="utf-8").splitlines()) for path in files())
    assert lengths[-1] <= 400
    assert lengths[len(lengths) // 2] < 200
