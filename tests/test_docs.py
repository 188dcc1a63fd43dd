"""The guides: their code runs and prints what they say, their links lead somewhere, and they leave out no public name.

A page is a session: its blocks run in order, in one empty folder and one namespace. A `python` block that begins with
`# name.py` becomes that file. A `sh` block of `rquant` runs in this process, one of `torchrun` in processes of its own. A
`text` block is what the block before it must print.
"""

import contextlib
import functools
import importlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

import rquant
from rquant import cli
from rquant.nn import registry

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
NEEDS = {
    "command-line.md": ["transformers"],
    "distributed.md": ["torch.distributed.tensor"],
    "evaluate.md": ["transformers", "matplotlib"],
    "transformers.md": ["transformers"],
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]*)(?:#([^)]*))?\)")
DOTTED = re.compile(r"\brquant(?:\.[A-Za-z_]\w*)+")


def run_sh(code):
    lines = code.replace("\\\n", " ").strip().splitlines()
    for line in lines:
        command, *arguments = shlex.split(line, comments=True)
        if command == "rquant":
            assert cli.main(arguments) == 0, line
        else:
            assert command == "torchrun", f"{line}: not run by this test"
            # a machine's own name need not be known to anybody
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--local-addr=localhost", *arguments]
            done = subprocess.run(torchrun, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{line}:\n{done.stderr}"
            print(done.stdout, end="")


def run_python(code, where, names):
    if name := re.match(r"# (\w+\.py)\n", code):
        Path(name[1]).write_text(code, encoding="utf-8")
    else:
        exec(compile(code, where, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_page_shows_is_so(page, tmp_path, monkeypatch, set_num_threads):
    # what a page registers is its own
    monkeypatch.setattr(registry, "_registrations", list(registry._registrations))
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    for package in NEEDS.get(page.name, []):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    names, printed = {"__name__": "__main__"}, ""
    for block in BLOCK.finditer(text):
        kind, code = block.groups()
        where = f"{page.name}, line {text[: block.start()].count(chr(10)) + 2}"
        if kind == "text":
            assert printed == code, where
            continue
        assert kind in ("python", "sh"), f"{where}: {kind} is not run by this test"
        with contextlib.redirect_stdout(io.StringIO()) as said:
            if kind == "sh":
                run_sh(code)
            else:
                run_python(code, where, names)
        printed = said.getvalue()


def anchors(page):
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for link, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            target = page.parent / link if link else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def test_the_index_has_every_page():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert {page.name for page in PAGES} - {"README.md"} <= {link for link, _ in LINK.findall(index)}


def everything_written():
    return "\n".join(page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *PAGES])


def test_every_public_name_is_told_of():
    told = set(DOTTED.findall(everything_written()))
    told |= {".".join(name.split(".")[:2]) for name in told}
    assert {f"rquant.{name}" for name in rquant.__all__} <= told


def test_every_name_told_of_is_there():
    for name in sorted(set(DOTTED.findall(everything_written()))):
        with contextlib.suppress(ImportError):  # a module that nothing has imported yet
            for i in range(2, name.count(".") + 2):
                importlib.import_module(".".join(name.split(".")[:i]))
        functools.reduce(getattr, name.split(".")[1:], rquant)
