"""What a user installs: metadata, version, licence, the README's lines."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import rquant
from rquant import _rquant

ROOT = Path(__file__).parent.parent


def test_one_version_everywhere():
    cargo = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    assert rquant.__version__ == _rquant.__version__ == importlib.metadata.version("rquant") == cargo


def test_metadata():
    meta = importlib.metadata.metadata("rquant")
    assert meta["License-Expression"] == "Apache-2.0"
    assert meta["Requires-Python"] == ">=3.10"
    needs = [n for n in importlib.metadata.requires("rquant") if "extra ==" not in n]
    assert [re.split(r"[<>=]", n)[0].strip() for n in needs] == ["numpy", "safetensors"]


def test_the_module_is_abi3_and_typed():
    assert re.search(r"_rquant(\.abi3\.so|\.pyd)$", _rquant.__file__)
    package = Path(rquant.__file__).parent
    assert (package / "py.typed").exists()
    assert (package / "_rquant.pyi").exists()


def test_import_without_torch():
    """numpy and safetensors are enough; a torch name says what is missing in one line."""
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import rquant, rquant.numpy\n"
        "try: rquant.Linear\n"
        "except ImportError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_import_does_not_import_torch():
    script = "import sys, rquant, rquant.numpy; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_readme_prints_what_it_says():
    command = [sys.executable, ROOT / "tests/readme.py", ROOT / "README.md"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_help_names_every_target():
    phony = re.search(r"^\.PHONY: (.+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    done = subprocess.run(["make", "-s", "-C", ROOT, "help"], capture_output=True, text=True, check=True)
    assert re.findall(r"^  make (\S+)", done.stdout, re.MULTILINE) == phony.split()


def test_no_x86_outside_cfg():
    """Every file that names x86 intrinsics is compiled for x86-64 only."""
    core = ROOT / "rust/core"
    users = [p for p in core.rglob("*.rs") if re.search(r"(std|core)::arch::x86_64", p.read_text())]
    assert users
    gate = r'#\[cfg\(target_arch = "x86_64"\)\]\s*(?:(?:#\[|//).*\s*)*(?:pub )?(?:mod {}|use (?:std|core)::arch::x86_64)'
    for path in users:
        # the file itself, or the folder whose `mod.rs` leads to it
        gated = [(path.stem, path.parent), (path.parent.name, path.parent.parent)]
        near = ((name, (folder / "mod.rs").read_text() + path.read_text()) for name, folder in gated)
        assert any(re.search(gate.format(name), code) for name, code in near), (
            f"{path}: gate it with cfg(target_arch)"
        )
