"""Habits of the Python files: addresses in one package, torch in none that must do without, none too long."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "python/rquant"
WITHOUT_TORCH = {
    "_import_hook",
    "_native/__init__",
    "_native/arrays",
    "_native/matrix",
    "_native/observe",
    "_native/panels",
    "_native/static",
    "_threads",
    "info",
    "io/__init__",
    "io/atomic",
    "io/checkpoint",
    "io/configuration",
    "io/contents",
    "io/safetensors_header",
    "io/sync",
    "numerics",
    "numpy",
    "patterns",
    "qtypes",
    "scheme",
    "streaming",
}


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def test_what_must_do_without_torch_does_not_import_it():
    for name in WITHOUT_TORCH:
        folder = ROOT / name
        for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = [
                alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
            ]
            names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            assert not any(name.split(".")[0] == "torch" for name in names), path


def test_addresses_are_taken_in_the_native_package():
    users = {path.relative_to(ROOT).parts[0] for path in files() if "data_ptr()" in path.read_text("utf-8")}
    assert users == {"_native"}


def test_files_are_short():
    lengths = sorted(len(path.read_text(encoding="utf-8").splitlines()) for path in files())
    assert lengths[-1] <= 400
    assert lengths[len(lengths) // 2] < 200
