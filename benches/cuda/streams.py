"""Step A on a real device: graphs, streams, the compiler, the sanitizer, the instructions one by one."""

import importlib.util
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import torch
from correctness import ROWS, Unit, plain_weight, through_the_ops
from operands import activations, error, floats_of, product

from rquant import _rquant
from rquant.cuda import find_nvrtc, routes
from rquant.cuda.timing import capture

HERE = Path(__file__).resolve().parent
MOST_SECONDS = 120  # of a sanitizer
SELFTEST = HERE.parent.parent / "tests" / "cuda_selftest.py"


def units(device: torch.device, folder: Path) -> list[Unit]:
    """What needs the real thing."""
    return [
        ("compile without the cache", lambda: compile_one(device)),
        ("instructions", lambda: instructions(folder)),
        ("torch ops", lambda: through_the_ops(device)),
        ("graph", lambda: graphs(device)),
        ("side stream", lambda: side_stream(device)),
    ]


def sanitized(folder: Path) -> list[Unit]:
    """The slowest, for the end."""
    return [(tool, lambda tool=tool: sanitizer(tool, folder)) for tool in ("memcheck", "racecheck")]


def compile_one(device: torch.device) -> dict:
    """NVRTC, found and at work for this very architecture."""
    found, (arch, _) = find_nvrtc(), _rquant.cuda_device(device.index or 0)
    if found is None:
        return {"ok": False, "error": "no NVRTC found"}
    start = time.perf_counter()
    cubin, log = _rquant.cuda_compile(found[0], "linear_small_4_f16", arch)
    seconds = time.perf_counter() - start
    return {
        "ok": len(cubin) > 1000,
        "nvrtc": str(found[0]),
        "arch": arch,
        "bytes": len(cubin),
        "seconds": seconds,
        "log": log,
    }


def instructions(folder: Path) -> dict:
    """Each PTX wrapper on random inputs, its outputs kept: what the emulator is compared with ever after."""
    selftest = _module(SELFTEST)
    if selftest is None:
        return {"ok": None, "skipped": "tests/cuda_selftest.py is not there"}
    path = folder / "cuda_primitives.npz"
    return {"ok": True, "device": selftest.write(path), "file": str(path)}


def _module(path: Path) -> ModuleType | None:
    if not path.exists():
        return None
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def graphs(device: torch.device) -> dict:
    """Captured once, replayed on new inputs in the same memory: what the call itself gives."""
    q = plain_weight(device)
    floats, wrong = floats_of(q), []
    for m in ROWS:
        x = activations(m, q.cols, torch.float16, device, seed=m)
        for route in ("small", "tiled", "dequantize"):
            if route == "small" and m > 8:
                continue
            outputs: list[torch.Tensor] = []
            graph = capture([lambda x=x, r=route, to=outputs: to.append(routes.linear(r, x, q, None))])
            x.copy_(activations(m, q.cols, torch.float16, device, seed=m + 1000))
            graph.replay()
            torch.cuda.synchronize()
            if not torch.equal(outputs[-1], routes.linear(route, x, q, None)):
                wrong.append(f"{route} m={m}")
            if not error(outputs[-1], product(x, floats, None)) < 1e-3:
                wrong.append(f"{route} m={m}: wrong answer")
    return {"ok": not wrong, "wrong": wrong}


def side_stream(device: torch.device, size: int = 4096) -> dict:
    """On a stream of its own, behind products of `size` squared that it must wait for."""
    q = plain_weight(device)
    stream, busy, wrong = torch.cuda.Stream(device), torch.randn(size, size, device=device), 0
    for m in (1, 16, 200):
        x = activations(m, q.cols, torch.float16, device, seed=m)
        want = routes.linear("tiled", x, q, None)
        late = torch.zeros_like(x)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(5):
                busy = busy @ busy * 1e-3
            late.copy_(x)
            got = routes.linear("tiled", late, q, None)
        stream.synchronize()
        wrong += not torch.equal(got, want)
    return {"ok": not wrong, "wrong": wrong}


def sanitizer(tool: str, folder: Path) -> dict:
    """compute-sanitizer on a small sweep, in a process of its own."""
    command = shutil.which("compute-sanitizer") or next(
        (str(path) for path in Path("/usr/local").glob("cuda*/bin/compute-sanitizer")), None
    )
    if command is None:
        return {"ok": None, "skipped": "compute-sanitizer is not installed"}
    script = [sys.executable, str(HERE / "run.py"), "sanitized", "--out", str(folder)]
    try:
        done = subprocess.run(
            [command, "--tool", tool, "--error-exitcode", "9", *script],
            capture_output=True,
            text=True,
            timeout=MOST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"ok": None, "skipped": f"{tool} took more than {MOST_SECONDS} s"}
    summary = re.findall(r"=+ (?:ERROR|RACECHECK) SUMMARY: .*", done.stdout)
    report = {"returned": done.returncode, "summary": summary, "output": (done.stdout + done.stderr)[-4000:]}
    if not summary and "not supported" in report["output"].lower():
        return {"ok": None, "skipped": "compute-sanitizer does not support this device", **report}
    return {"ok": done.returncode == 0, **report}
