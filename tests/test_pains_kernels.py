"""Complaints of other quantizers' users about kernels: speed, exactness, installation, memory (docs/defects-and-pains.md)."""

import os
import subprocess
import sys
import time
import warnings

import pytest
import torch
from torch import nn

import rquant
from rquant import _rquant
from rquant.compat.torch_ao import quantize_dynamic


def is_faster(one, other, rounds=15, most=300):
    """Whether `one` takes less time than `other`, by the shortest of each.

    They take turns, so that what else the machine does falls on both alike; where it does much, they get more of them.
    """
    least = [float("inf")] * 2
    for turn in range(most):
        for i, call in enumerate((one, other)):
            start = time.perf_counter()
            call()
            least[i] = min(least[i], time.perf_counter() - start)
        if turn + 1 >= rounds and least[0] < least[1]:
            return True
    return False


@pytest.mark.skipif(_rquant.isa() == "portable", reason="the portable kernels are for correctness")
@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("weights", ["int8", "int4", "int2"])
def test_pain_01_integers_are_not_slower_than_float(weights, rows, set_num_threads):
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    set_num_threads(1)
    try:
        linear, x = nn.Linear(1024, 2048), torch.randn(rows, 1024)
        layer = rquant.Linear.from_float(linear, weights, "int8")
        with torch.no_grad():
            assert is_faster(lambda: layer(x), lambda: linear(x))
    finally:
        torch.set_num_threads(torch_threads)


def test_pain_02_int8_layers_in_eager_mode_by_the_call_that_torch_deprecates():
    """Beside torch's own, which warns that it will be removed: same arguments, one native call a layer."""
    model, x = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 64)).eval(), torch.randn(32, 256)
    ours = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        want = model(x)
        assert (ours(x) - want).norm() <= (theirs(x) - want).norm()


EXTREMES = """
import numpy as np
from rquant import _native
rng = np.random.default_rng(0)
for bits, m, (n, k) in [(b, m, s) for b in (8, 4, 2) for m in (1, 2, 70) for s in ((3, 7), (65, 640))]:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    a = rng.choice(np.array([-128, -127, 127], np.int8), (m, k))
    w = rng.choice(np.array([low, high], np.int8), (n, k))
    q = _native.QMatrix(_native.pack_codes(w, bits), np.ones((n, 1), np.float32), None, k, bits, -1)
    assert (_native.gemm_i32(a, _native.pack(q), n) == a.astype(np.int64) @ w.T.astype(np.int64)).all()
"""


def test_pain_03_extreme_operands_never_saturate(isa):
    """All +-127 and -128, where `vpmaddubsw` alone would saturate in 16 bits; one row too."""
    isa(EXTREMES)


def test_pain_04_nothing_is_compiled_at_first_use(monkeypatch):
    """No program is started: neither a compiler nor anything that asks for one."""

    def refuse(*args, **options):
        raise AssertionError(f"started {args}")

    for module, name in [(subprocess, "Popen"), (os, "system"), (os, "posix_spawn"), (os, "fork")]:
        monkeypatch.setattr(module, name, refuse, raising=False)
    for weights in ("int8", "int4", "int2"):
        for activations in (None, "int8"):
            layer = rquant.Linear.from_float(nn.Linear(70, 30), weights, activations)
            assert layer(torch.randn(3, 70)).shape == (3, 30)


WITHOUT = """
import sys
sys.modules["torch"] = None
import numpy as np, rquant.numpy as rq
q = rq.quantize(np.eye(64, dtype=np.float32))
print(rq.linear(np.ones((1, 64), np.float32), q, activations="int8").sum())
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
assert not any(name in maps for name in ("libtorch", "libc10", "libcuda", "libcudart", "libgomp")), maps
"""


def test_pain_05_no_library_of_torch_or_cuda_is_needed():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 64.0


def test_pain_08_a_loud_token_costs_the_others_nothing():
    """Scales of activations are a token's own: one a tensor would round all others to nothing."""
    layer, x = rquant.Linear.from_float(nn.Linear(64, 64), "int8", "int8"), torch.randn(16, 64)
    loud = x.clone()
    loud[3] *= 10_000
    others = torch.arange(16) != 3
    assert torch.equal(layer(loud)[others], layer(x)[others])
    codes = (loud / (loud.abs().max() / 127)).round()
    assert not codes[others].any()


def test_pain_13_no_overflow_and_no_nan():
    """Zero, denormal, enormous and constant groups, float16 inputs whose products pass 65504; a NaN is named or stays a row."""
    linear, x = nn.Linear(64, 6, bias=False), torch.randn(4, 64)
    with torch.no_grad():
        linear.weight[0], linear.weight[1], linear.weight[2] = 0.0, 1e-40, 7.5
        linear.weight[3] *= 1e30
        linear.weight[4] *= 1e-30
    for weights in ("int8", "int4", "int2"):
        for activations in (None, "int8"):
            layer = rquant.Linear.from_float(linear, weights, activations)
            assert layer(x).isfinite().all()
            assert layer(torch.zeros(1, 64)).tolist() == [[0.0] * 6]
            x_nan = x.clone()
            x_nan[2, 5] = torch.nan
            got = layer(x_nan)
            assert got[2].isnan().all()
            assert torch.equal(got[[0, 1, 3]], layer(x)[[0, 1, 3]])
    half, loud = rquant.Linear.from_float(nn.Linear(1024, 4), "int8", "int8"), torch.full((1, 1024), 4000.0)
    assert torch.equal(half(loud.half()), half(loud).half())
    linear.weight.data[5, 3] = torch.inf
    with pytest.raises(ValueError, match=r"weight: .*\[5, 3\]"):
        rquant.Linear.from_float(linear)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activations", [None, "int8"])
def test_pain_23_every_float_is_read_as_it_is(dtype, activations):
    """No cast to float16 and no warning: the output has the input's dtype and no more error than its rounding."""
    layer, x = rquant.Linear.from_float(nn.Linear(128, 64), "int8", activations), torch.randn(8, 128)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = layer(x.to(dtype))
    assert got.dtype == dtype
    want = layer(x.to(dtype).float())
    tolerance = 2 * torch.finfo(dtype).eps * want.abs().max().item()
    torch.testing.assert_close(got.float(), want, rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pain_24_observers_are_native():
    from torch.ao.quantization.observer import HistogramObserver

    x = torch.randn(1 << 20)
    ours, torchs = rquant.observers.MSE(), HistogramObserver()
    assert is_faster(lambda: ours.update(x), lambda: torchs(x), rounds=6)
    assert is_faster(ours.range, lambda: time.sleep(0.2), rounds=1)
