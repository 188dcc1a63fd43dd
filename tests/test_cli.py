"""The command itself: quick to start, one line for a mistake; `doctor`."""

import json
import os
import subprocess
import sys
import types

import pytest

import rquant
from rquant import cli
from rquant.cli import _selfcheck, doctor


def run(*arguments, **env):
    command = [sys.executable, "-m", "rquant", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})


def test_help_needs_no_torch():
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from rquant.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as e: print(e.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.endswith("\n0\n"), done.stderr
    assert "doctor" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["doctor", "--nonsense"]], ids=" ".join)
def test_wrong_usage_is_one_line_and_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("rquant")
    assert said.count("\n") == 1


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"rquant {rquant.__version__}\n"


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (ValueError("x: expected 1,\n got 2"), 1, "rquant doctor: x: expected 1, got 2\n"),
        (FileNotFoundError("m: no such file"), 1, "rquant doctor: m: no such file\n"),
        (KeyboardInterrupt(), 130, "rquant doctor: interrupted\n"),
    ],
    ids=["value", "file", "interrupt"],
)
def test_an_expected_error_is_one_line(raised, code, line, monkeypatch, capsys):
    def fail(args):
        raise raised

    monkeypatch.setattr(doctor, "run", fail)
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().err == line


def test_doctor_tells_everything_and_checks():
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told.keys() >= rquant.backend_info().keys()
    assert set(told["check"]) == set(told["isas of this CPU"])
    assert not any(told["check"].values())


def test_doctor_fails_where_a_kernel_does(monkeypatch, capsys):
    def answer(command, env, **options):
        bad = env["RQUANT_ISA"] != "portable"
        return types.SimpleNamespace(returncode=0, stdout="wrong" if bad else "right", stderr="")

    monkeypatch.setattr(_selfcheck, "subprocess", types.SimpleNamespace(run=answer))
    monkeypatch.setattr(_selfcheck, "supported_isas", lambda: ["portable", "avx2"])
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "check, portable   works" in out
    assert "check, avx2       its products differ" in out


def test_the_check_finds_an_inexact_product(monkeypatch):
    exact = _selfcheck._native.gemm_i32
    monkeypatch.setattr(_selfcheck._native, "gemm_i32", lambda *args: exact(*args) + 1)
    with pytest.raises(ArithmeticError, match="qint2"):
        _selfcheck.product()
