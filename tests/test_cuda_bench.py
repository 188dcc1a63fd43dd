"""The programs of benches/cuda at work without a GPU, on the emulated driver: what will run on a real one has run."""

import subprocess
import sys
from pathlib import Path

import cuda_emulator
import pytest

BENCH = Path(__file__).parent.parent / "benches/cuda"
pytestmark = pytest.mark.skipif(cuda_emulator.COMPILER is None, reason="no C++ compiler for the emulator")
BEGIN = f"""
import json, pathlib, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {str(BENCH)!r})
import goals, report
from book import Book
folder, device = pathlib.Path(os.environ["RQUANT_CACHE_DIR"]) / "out", torch.device("cpu")
def clock(what, calls):
    for call in calls[:1]:
        call()
    return 5.0
"""


def test_the_sweep_finds_every_kernel_right(cuda_driver, tmp_path):
    """All kinds of units, few sizes; a second run has nothing left to do, and the report names what was found."""
    cuda_emulator.run(
        BEGIN
        + """
import correctness
correctness.poisoned()
assert torch.empty(3).isnan().all()
chosen = {**correctness.TINY, "groups": (32, -1), "rows": (1, 17)}
units = list(correctness.sweep(device, **chosen))
units = [(key, run) for key, run in units if "int2" not in key and not ("int8" in key and "bfloat16" in key)]
book = Book(folder, "A", 10)
book.add("machine", {"device": "none"})
book.fill([*units, ("torch ops", lambda: correctness.through_the_ops(device)), ("broken", lambda: 1 / 0)])
kernels = {key.split()[0] for key in book.records} - {"machine"}
assert kernels == {"small", "tiled", "dequantize", "integer", "int_mm", "bits", "rows", "outliers", "embedding", "torch", "broken"}
assert [record["key"] for record in book.failed] == ["broken"], book.failed
assert "ZeroDivisionError" in book.records["broken"]["error"] and launches() > 50
with book.path.open("a") as file:
    file.write('{"key": "cut')
again = Book(folder, "A", 0)
again.fill(units)
tried = []
Book(folder, "A", 10).fill([("broken", lambda: tried.append(1) or {"ok": True})])
assert tried and not Book(folder, "A", 0).failed  # what failed is tried anew
assert not again.left and again.records.keys() == book.records.keys()
assert Book(folder, "A", 0, fresh=True).records == {}
short = Book(folder, "A", 0)
short.fill(units)
assert short.left == len(units)
""",
        cuda_driver,
        tmp_path,
    )


def test_the_sweep_notices_what_is_wrong(cuda_driver, cubins):
    """A route that computes with another zero point, one that writes half of its output, one that passes infinity on."""
    cuda_emulator.run(
        BEGIN
        + """
import correctness
from operands import Form
correctness.poisoned()
linear, form = correctness.routes.linear, Form(4, 32, "integer")

def found(change):
    correctness.routes.linear = change
    return correctness.float_product(device, "tiled", form, 40, 96, torch.float16, [9, 17])["ok"]

assert found(linear)
assert not found(lambda route, x, q, bias: linear(route, x, q._replace(zero_point=q.zero_point // 2), bias))
assert not found(lambda route, x, q, bias: torch.empty(x.shape[0], 40).half())
assert not found(lambda route, x, q, bias: linear(route, x, q, bias).nan_to_num(torch.inf))
""",
        cuda_driver,
        cubins,
    )


def test_speed_peers_and_decoding_run(cuda_driver, tmp_path):
    """With a clock that says 5 us; every figure that a goal names is there, an arm that cannot run says why."""
    cuda_emulator.run(
        BEGIN
        + """
import decode, rivals, speed
speed.COLD_BYTES = 1
for step, units in (
    ("B", [*speed.ceilings(device, clock, 64), *speed.kernels(device, clock, (64, 128), (96, 64))]),
    ("C", [unit for unit in rivals.units(device, True, clock) if "rquant" in unit[0] or "torch" in unit[0]]),
    ("D", decode.units(device, True)),
):
    if step == "B":
        units = [(key, run) for key, run in units if not ("m=2048" in key and "A8" in key or key == "rows m=4096")]
    book = Book(folder, step, 10)
    book.fill(units)
    assert not book.failed, book.failed
figures = set(report.read(folder, "B")) | {"rows m=4096"} | {f"W{b}A8 square m=2048" for b in (8, 4, 2)}
assert {goal.key for goal in goals.GOALS} | {goal.other for goal in goals.GOALS if goal.other} <= figures
arms = report.read(folder, "C")
assert all("us" in arms[f"{arm} 256x256 m=32"] for arm in ("torch float16", "rquant int8", "rquant int4 a8 g128", "torch _int_mm"))
assert "absent" in arms["torchao int8 256x256 m=1"] or "us" in arms["torchao int8 256x256 m=1"]
page = report.report(folder)
assert all(word in page for word in ("at most 28 us", "not measured", "256x256", "tokens a second", "| int4 g128 |"))
""",
        cuda_driver,
        tmp_path,
    )


def test_a_step_is_run_and_reported(cuda_driver, tmp_path):
    """The command's own way through step A, without what needs a device."""
    cuda_emulator.run(
        BEGIN
        + """
import correctness, machine_of, run, streams
machine_of.describe = lambda device: {"device": "of paper"}
streams.units = lambda device, folder: [("graph", lambda: {"ok": True, "wrong": []})]
correctness.SMALL = {**correctness.TINY, "kinds": (4,), "rows": (1, 9)}
book = Book(folder, "A", 10)
run.run("A", book, device, folder, True)
assert not book.failed and {"machine", "graph"} < book.records.keys() and len(book.records) > 8
assert not torch.are_deterministic_algorithms_enabled()
page = report.report(folder)
assert "of paper" in page and "| tiled | 2 |" in page, page
""",
        cuda_driver,
        tmp_path,
    )


def test_without_a_device_it_says_so(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a device")
    command = [sys.executable, str(BENCH / "run.py"), "A", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no CUDA device here" in done.stderr


@pytest.mark.gpu
def test_on_the_device_itself(tmp_path):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    command = [sys.executable, str(BENCH / "run.py"), "A", "--out", str(tmp_path), "--small"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
