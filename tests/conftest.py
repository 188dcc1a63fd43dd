"""Instruction sets: the `isa` fixture runs a script at one level, and the summary says which levels ran."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LEVELS = ("portable", "avx2", "avx512vnni", "avx512bf16")
_seen: dict[str, set[str]] = {"run": set(), "skipped": set()}


@pytest.fixture(params=LEVELS)
def isa(request: pytest.FixtureRequest) -> Callable[..., str]:
    """`isa(script)` runs Python source in a process held to one level with RQUANT_ISA and returns what it prints.

    `isa.level` is its name. Keywords are further environment variables. A script that fails fails the test.
    """
    from rquant._rquant import supported_isas

    level = request.param
    if level not in supported_isas():
        _seen["skipped"].add(level)
        pytest.skip(f"this CPU has {', '.join(supported_isas())}; not {level}")
    _seen["run"].add(level)

    def run(script: str, **env: str) -> str:
        command = [sys.executable, "-c", script]
        done = subprocess.run(
            command, env={**os.environ, "RQUANT_ISA": level, **env}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"at RQUANT_ISA={level}:\n{done.stderr}"
        return done.stdout

    run.level = level
    return run


@pytest.fixture(autouse=True)
def forget_compiled() -> Iterator[None]:
    """torch.compile counts recompilations of its own wrappers over the whole process, and refuses the ninth."""
    yield
    if (dynamo := sys.modules.get("torch._dynamo")) is not None:
        dynamo.reset()


@pytest.fixture
def transformers_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """`caplog` with transformers' warnings, whatever the process has done to its logging before."""
    from transformers.utils import logging

    verbosity, propagates = logging.get_verbosity(), logging.get_logger("transformers").propagate
    logging.set_verbosity_warning()
    logging.enable_propagation()
    yield caplog
    logging.set_verbosity(verbosity)
    logging.get_logger("transformers").propagate = propagates


@pytest.fixture
def set_num_threads() -> Iterator[Callable[[int], None]]:
    """`rquant.set_num_threads`, undone after the test."""
    import rquant
    from rquant import _threads

    before = _threads._chosen
    yield rquant.set_num_threads
    _threads._choose(before)


@pytest.fixture(scope="session")
def cuda_driver() -> Path:
    """The folder of the emulated CUDA driver; see cuda_emulator."""
    import cuda_emulator

    modules = [name for name, *_ in cuda_emulator._rquant.cuda_modules()]
    if not os.environ.get("RQUANT_CUDA_CHECK"):  # of these, others are the same source with other activations
        modules = [name for name in modules if not name.endswith(("_8_bf16", "_2_bf16"))]
    return cuda_emulator.build(modules=modules)


@pytest.fixture(scope="session")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for compiled CUDA kernels."""
    return tmp_path_factory.mktemp("cubins")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """ISA levels run: portable, avx2, avx512vnni, avx512bf16; skipped: none"""
    if any(_seen.values()):
        names = {
            key: ", ".join(level for level in LEVELS if level in had) or "none" for key, had in _seen.items()
        }
        terminalreporter.write_line(f"ISA levels run: {names['run']}; skipped: {names['skipped']}")
