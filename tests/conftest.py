"""What holds for every test: the same numbers each time, no network; and fixtures, of which `isa` is for instruction sets."""

import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# What tests start inherits these: `from_pretrained` of a name that is no folder fails at once; a process that crashes says where;
# gloo asks nobody what the machine's name stands for.
os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONFAULTHANDLER": "1"}
if sys.platform == "linux":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"

# The same examples each time, however slow the machine; `--hypothesis-profile=search` looks for new ones.
SLOW = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("same", derandomize=True, database=None, **SLOW)
hypothesis.settings.register_profile("search", **SLOW)
hypothesis.settings.load_profile("same")


class Torch:
    """torch's random numbers, for hypothesis to seed: the same ones in each example, as in each module, fixture and test."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH = Torch()
hypothesis.register_random(TORCH)


def pytest_collectstart() -> None:
    torch.manual_seed(0)


def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    torch.manual_seed(
        zlib.crc32(fixturedef.argname.encode())
    )  # others than the test's, and than each other's


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    torch.manual_seed(0)


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


def shared() -> dict[str, object]:
    """What a test could leave behind for the next one."""
    from rquant import _threads

    module = torch.nn.modules.module
    return {
        "folder": os.getcwd(),
        "environment": {k: v for k, v in os.environ.items() if k.startswith("RQUANT") or "THREADS" in k},
        "threads": (torch.get_num_threads(), _threads._chosen),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "global hooks": [*module._global_forward_hooks, *module._global_forward_pre_hooks],
    }


@pytest.fixture(autouse=True)
def leave_as_found() -> Iterator[None]:
    """A test that changes what all share fails itself, not the one that happens to come after it."""
    before = shared()
    yield
    if (dynamo := sys.modules.get("torch._dynamo")) is not None:
        dynamo.reset()  # it counts recompilations of its own wrappers over the whole process, and refuses the ninth
    assert shared() == before


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
