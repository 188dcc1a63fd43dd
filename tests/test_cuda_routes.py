"""Which way a product takes: the table, its file, and measuring it with a clock of our own."""

import json

import cuda_emulator
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rquant.cuda import table
from rquant.cuda.table import ESTIMATED, ROUTES, Cell, Table, crossovers_of

needs_compiler = pytest.mark.skipif(cuda_emulator.COMPILER is None, reason="no C++ compiler for the emulator")


def cell(bits=4, group_size=128, n=4096, k=4096, most=64, arithmetic="float16"):
    return Cell(arithmetic, bits, group_size, n, k, ((8, "small"), (most, "tiled"), (None, "dequantize")))


def test_without_measurements_routes_are_estimated():
    route = Table().route
    assert [route("float16", 4, 128, 512, 512, m) for m in (0, 1, 8, 9, 128, 129, 10**6)] == [
        "small", "small", "small", "tiled", "tiled", "dequantize", "dequantize"
    ]  # fmt: skip
    assert route("int8", 8, -1, 512, 512, 4096) == "integer"
    assert {
        name: {route for _, route in steps} <= set(ROUTES[name]) for name, steps in ESTIMATED.items()
    } == dict.fromkeys(ROUTES, True)


def test_the_nearest_measurement_decides():
    found = Table([
        cell(most=10), cell(most=20, n=16384), cell(most=30, group_size=32), cell(most=40, group_size=-1, k=512),
        cell(most=50, bits=8),
    ])  # fmt: skip

    def most(*weight):
        return found.crossovers("float16", *weight)[1][0]

    assert most(4, 128, 4096, 4096) == 10
    assert most(4, 128, 14336, 4096) == 20
    assert most(4, 64, 100, 4096) == 10  # as near as 32 by its group, and the first
    assert most(4, 32, 100, 100) == 30
    assert most(4, -1, 16384, 8192) == 40  # one group a row is one, however long
    assert most(8, 32, 1, 1) == 50
    assert found.crossovers("float16", 2, 32, 64, 64) == ESTIMATED["float16"]
    assert found.crossovers("bfloat16", 4, 128, 4096, 4096) == ESTIMATED["bfloat16"]


def test_crossovers_of_times():
    times = {
        1: {"small": 2.0, "tiled": 3.0, "dequantize": 9.0},
        8: {"small": 2.0, "tiled": 1.99, "dequantize": 9.0},  # no gain worth a change
        16: {"tiled": 3.0, "dequantize": 9.0},
        64: {"tiled": 8.0, "dequantize": 7.9},
        128: {"tiled": 12.0, "dequantize": 9.0},
    }
    assert crossovers_of(times) == ((8, "small"), (64, "tiled"), (None, "dequantize"))
    assert crossovers_of({1: {"integer": 1.0}}) == ((None, "integer"),)


TIMES = st.dictionaries(st.sampled_from(ROUTES["float16"]), st.floats(0.1, 100), min_size=1)


@given(st.dictionaries(st.integers(1, 5000), TIMES, min_size=1, max_size=5))
def test_every_number_of_rows_has_a_route_nearly_the_fastest(times):
    found = Table([Cell("float16", 4, 128, 64, 64, crossovers_of(times), times)])
    for rows, of_routes in times.items():
        chosen = found.route("float16", 4, 128, 64, 64, rows)
        assert chosen in of_routes
        assert of_routes[chosen] <= min(of_routes.values()) / 0.97
    assert found.route("float16", 4, 128, 64, 64, 10**9) in ROUTES["float16"]


def test_a_table_is_kept_and_read(tmp_path):
    kept = Table([cell(), Cell("int8", 8, -1, 64, 64, ((None, "integer"),), {16: {"integer": 2.5}})])
    path = table.write(kept, "NVIDIA H200", tmp_path / "new")
    assert path == table.path_of("NVIDIA H200", tmp_path / "new")
    assert path.name.startswith("routes.nvidia-h200.")
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left
    assert table.read(path).cells == kept.cells
    assert table.path_of("NVIDIA H100", tmp_path) != table.path_of("NVIDIA H200", tmp_path)


def test_other_versions_are_other_tables(tmp_path, monkeypatch):
    before = table.path_of("x", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    assert table.path_of("x", tmp_path) != before


GOOD = {
    "arithmetic": "float16",
    "bits": 4,
    "group_size": 64,
    "n": 8,
    "k": 8,
    "crossovers": [[8, "small"], [None, "tiled"]],
}
BAD = [
    ("", "expected JSON"),
    ("\xff", "expected JSON"),
    ("[]", "format 1"),
    (json.dumps({"format": 2, "cells": []}), "format 1"),
    (json.dumps({"format": 1}), "KeyError 'cells'"),
    (json.dumps({"format": 1, "cells": [1]}), "TypeError"),
    *(
        (json.dumps({"format": 1, "cells": [{**GOOD, **change}]}), says)
        for change, says in (
            ({"arithmetic": "float64"}, "arithmetic: expected one of float16"),
            ({"n": 0}, "expected sizes"),
            ({"k": -1}, "expected sizes"),
            ({"bits": "4"}, "expected sizes"),
            ({"crossovers": []}, "rising rows"),
            ({"crossovers": [[8, "small"]]}, "rising rows"),
            ({"crossovers": [[8, "small"], [8, "tiled"], [None, "dequantize"]]}, "rising rows"),
            ({"crossovers": [[8, "integer"], [None, "tiled"]]}, "with one of"),
            ({"crossovers": [[True, "small"], [None, "tiled"]]}, "rising rows"),
            ({"crossovers": 7}, "TypeError"),
        )
    ),
]


@pytest.mark.parametrize(("text", "says"), BAD)
def test_a_bad_file_is_ignored_with_one_warning(text, says, tmp_path, monkeypatch):
    monkeypatch.setenv("RQUANT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(table, "device_name", lambda index: "a device")
    table.path_of("a device").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=says.replace("[", r"\[")):
        table.read(table.path_of("a device"))
    table.of_device.cache_clear()
    with pytest.warns(UserWarning, match=r"ignores .*routes\.a-device\..*tune") as seen:
        assert table.of_device(0).cells == table.of_device(0).cells == ()
    assert len(seen) == 1
    table.of_device.cache_clear()


TUNED = """
from rquant.cuda import table, tune
import warnings; tuning = sys.modules["rquant.cuda.tune"]
tuning.COLD_BYTES = 1

def clock(call, calls):
    assert len(calls) == 2
    outputs = [run() for run in calls]
    assert all(out.shape == (call.rows, call.n) for out in outputs)
    seen.append(call)
    # the tiled kernel is the fastest at 5 to 20 rows
    cost = {"small": call.rows, "tiled": 4.5 + call.rows / 10, "dequantize": 6.4, "integer": 2 + call.rows, "int_mm": 20}
    return cost[call.route]

def product(m, integer=False):
    q = _native.quantize(torch.randn(40, 64), 4, 32, True) if not integer else _native.quantize(torch.randn(40, 64), 8, -1, True)
    x = torch.randn(m, 64).half()
    before = launches()
    got = cuda.linear_canonical(x, q, None, integer)
    want = reference.linear_canonical(x.double(), q, None, integer)
    torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=2e-2)
    return launches() - before

seen = []
"""


@needs_compiler
def test_tuning_measures_every_route_and_products_follow(cuda_driver, tmp_path):
    cuda_emulator.run(
        TUNED
        + """
found = tune(
    "cpu", shapes=[(40, 64)], group_sizes=(32, -1, 20), bits=(8, 4), rows=(1, 4, 8, 16, 24), arithmetics=("float16", "int8"),
    timer=clock,
)
assert {c.route for c in seen} == {"small", "tiled", "dequantize", "integer", "int_mm"}
assert not any(c.group_size == 20 for c in seen)  # there is nothing to choose
assert not any(c.route == "small" and c.rows > 8 or c.route == "int_mm" and c.rows <= 16 for c in seen)
assert found.crossovers("float16", 4, 32, 40, 64) == ((4, "small"), (16, "tiled"), (None, "dequantize"))
assert found.crossovers("int8", 8, -1, 40, 64) == ((16, "integer"), (None, "int_mm"))
(path,) = [name for name in os.listdir(os.environ["RQUANT_CACHE_DIR"]) if name.endswith(".json")]
assert path.startswith("routes.sm-90a-with-132-multiprocessors."), path

assert [product(m) for m in (4, 8, 24)] == [1, 1, 1]
assert product(16, True) == product(24, True) == 2  # rows, then the product, or the codes for torch's
""",
        cuda_driver,
        tmp_path,
    )
    taken = (
        TUNED
        + """
warnings.simplefilter("ignore")
linear = cuda.routes.linear
cuda.routes.linear = lambda route, *rest: (print(route), linear(route, *rest))[1]
for m in (4, 8, 24):
    product(m)
"""
    )
    assert cuda_emulator.run(taken, cuda_driver, tmp_path).split() == ["small", "tiled", "dequantize"]
    (path,) = tmp_path.glob("routes.*.json")
    path.write_text(path.read_text()[:-5])
    assert cuda_emulator.run(taken, cuda_driver, tmp_path).split() == ["small", "small", "tiled"]


@needs_compiler
def test_int_mm_is_exact(cuda_driver, cubins):
    """The integer route through torch, forced: with all kinds of zero points, against the kernel's."""
    cuda_emulator.run(
        """
from rquant.cuda import routes
for kind, symmetric in ((8, True), (8, False), (4, False), (2, True)):
    q = _native.quantize(torch.randn(40, 64), kind, -1, symmetric)
    for q in (q, q._replace(zero_point=torch.randn(40, 1).half() * 3)):
        x, bias = torch.randn(20, 64), torch.randn(40)
        x[3, 5] = torch.inf
        codes, scale = routes.quantize_rows(x, None)
        assert routes.takes_int_mm(20, q) and not routes.takes_int_mm(16, q)
        got, want = (routes.linear_int8(r, codes, scale, q, bias, torch.float32) for r in ("int_mm", "integer"))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert got[3].isnan().all() and not got[4].isnan().any()
wide = _native.quantize(torch.randn(40, 72), 8, 24, True)
assert not routes.takes_int_mm(20, wide) and not routes.takes_int_mm(20, _native.quantize(torch.randn(40, 60), 8, -1, True))
""",
        cuda_driver,
        cubins,
    )


@needs_compiler
def test_the_command_shows_what_it_found(cuda_driver, tmp_path):
    """Of this device alone, with the clock of the test in the place of the device's."""
    said = cuda_emulator.run(
        TUNED
        + """
from rquant.cuda import timing
from rquant.cuda.tune.__main__ import main
timing.GraphTimer = lambda: clock
assert main(["--device", "cpu", "--shape", "40x64", "--bits", "4", "--group-size", "-1", "--rows", "24", "1", "8"]) == 0
""",
        cuda_driver,
        tmp_path,
    )
    rows = [line.split("  ") for line in said.splitlines()]
    assert [part.strip() for part in rows[2] if part] == [
        "float16",
        "int4",
        "row",
        "40x64",
        "small to 1, tiled to 8, dequantize",
    ]
    assert said.splitlines()[-1] == f"kept in {tmp_path}"


def test_without_a_device_there_is_nothing_to_tune(capsys):
    from rquant.cuda.tune.__main__ import main

    if torch.cuda.is_available():
        pytest.skip("this machine has a device")
    assert main([]) == 1
    assert "nothing to tune" in capsys.readouterr().err
    assert main(["--shape", "12"]) == 1
    assert "--shape: expected sizes as in 4096x4096, got '12'" in capsys.readouterr().err
