"""`rquant::linear` by the native kernel and by the Python kernel that it falls back to: nobody can tell them apart."""

import re
import sys
import threading

import memory
import pytest
import torch
from processes import leaked, run
from torch import nn

import rquant
from rquant import _native, _ops

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
NATIVE = "torch_shim" in torch._C._dispatch_dump("rquant::linear")

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def panels():
    w = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    return _native.pack(_native.quantize(w, 8, -1, True))


@pytest.mark.skipif(sys.platform != "linux" or TORCH < (2, 13), reason="torch 2.13 or later, on Linux")
def test_a_new_torch_has_the_native_kernel():
    assert NATIVE


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize(
    "shape", [(50,), (3, 50), (2, 3, 50), (1, 2, 3, 50), (0, 50), (2, 0, 50), (1,) * 8 + (50,)]
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_same_bits(panels, dtype, shape, integer):
    x = torch.randn(shape).to(dtype)
    for bias in (None, *(torch.randn(20).to(floats) for floats in FLOATS)):
        for scale in (None, torch.rand(shape[:-1]) + 0.01, torch.tensor(0.02)) if integer else (None,):
            arguments = (x, panels, bias, 50, 20, integer, scale)
            got, want = _ops.linear(*arguments), _ops.linear_python(*arguments)
            assert (got.dtype, got.shape, got.stride()) == (want.dtype, want.shape, want.stride())
            assert torch.equal(got, want)


@pytest.mark.parametrize(
    "name", ["strided", "offset", "negative", "permuted panels", "long bias", "strided bias"]
)
def test_unusual_tensors(panels, name):
    x, bias, weight = torch.randn(4, 50), torch.randn(20), panels
    if name == "strided":
        x = torch.randn(50, 4).T
    elif name == "offset":
        x = torch.randn(10, 50)[3:7]
    elif name == "negative":
        x = torch.randn(4, 50, dtype=torch.complex64).conj().imag
    elif name == "permuted panels":
        weight = panels.reshape(1, -1)
    elif name == "long bias":
        bias = torch.randn(20, 1)
    elif name == "strided bias":
        bias = torch.randn(40)[::2]
    results = []
    for op in (_ops.checked_linear, _ops.linear_python):
        try:
            results.append(op(x, weight, bias, 50, 20, True))
        except ValueError as error:
            results.append(torch.tensor(list(str(error).encode())))
    assert torch.equal(*results)


WRONG = {
    "last dimension": lambda x, panels, bias: (x[:, 1:], panels, bias, 50, 20),
    "in_features": lambda x, panels, bias: (x[:, 1:], panels, bias, 49, 20),
    "out_features": lambda x, panels, bias: (x, panels, None, 50, 21),
    "scalar": lambda x, panels, bias: (x[0, 0], panels, bias, 50, 20),
    "dtype": lambda x, panels, bias: (x.double(), panels, bias, 50, 20),
    "bias dtype": lambda x, panels, bias: (x, panels, bias.int(), 50, 20),
    "bias length": lambda x, panels, bias: (x, panels, bias[:5], 50, 20),
    "short panels": lambda x, panels, bias: (x, panels[:-1], bias, 50, 20),
    "no panels": lambda x, panels, bias: (x, panels[:0], bias, 50, 20),
    "scales of another number": lambda x, panels, bias: (x, panels, bias, 50, 20, True, torch.ones(2)),
    "no scales": lambda x, panels, bias: (x, panels, bias, 50, 20, True, torch.ones(0)),
    "scale dtype": lambda x, panels, bias: (x, panels, bias, 50, 20, True, torch.ones(3).half()),
    "negative scale": lambda x, panels, bias: (x, panels, bias, 50, 20, True, torch.tensor([1.0, -1.0, 1.0])),
    "float arithmetic with scales": lambda x, panels, bias: (x, panels, bias, 50, 20, False, torch.ones(3)),
    "zeroed panels": lambda x, panels, bias: (x, torch.zeros_like(panels), bias, 50, 20),
}


@pytest.mark.parametrize("what", WRONG)
def test_same_errors(panels, what):
    arguments = WRONG[what](torch.randn(3, 50), panels, torch.randn(20))
    arguments += (True,) if len(arguments) == 5 else ()
    with pytest.raises(ValueError, match=r"\w") as want:
        _ops.linear_python(*arguments)
    with pytest.raises(ValueError, match=f"^{re.escape(str(want.value))}$") as got:
        _ops.checked_linear(*arguments)
    assert got.value.__context__ is None
    with pytest.raises((ValueError, RuntimeError), match=re.escape(str(want.value))):
        _ops.linear(*arguments)


def test_inference_mode_and_gradients(panels):
    x, bias = torch.randn(3, 50, requires_grad=True), torch.randn(20)
    with torch.inference_mode():
        assert _ops.linear(x, panels, bias, 50, 20, True).is_inference()
    assert not _ops.linear(x.detach(), panels, bias, 50, 20, True).is_inference()
    layer = rquant.Linear.from_float(nn.Linear(50, 20), activations="int8")
    layer(x).sum().backward()
    assert x.grad is not None


@pytest.mark.filterwarnings("ignore:.*batching rule.*:UserWarning")
def test_vmap_and_subclasses(panels):
    class Named(torch.Tensor):
        pass

    x = torch.randn(3, 4, 50)
    want = _ops.linear(x, panels, None, 50, 20, True)
    assert torch.equal(_ops.linear(x.as_subclass(Named), panels, None, 50, 20, True), want)
    got = torch.func.vmap(lambda x: _ops.linear(x, panels, None, 50, 20, True))(x)
    assert torch.equal(got, want)


LEAK = """
import torch
from rquant import _native, _ops
panels = _native.pack(_native.quantize(torch.randn(20, 50), 8, -1, True))
x, bias, scale = torch.randn(3, 50), torch.randn(20), torch.ones(3)

def calls(n):
    for _ in range(n):
        _ops.linear(x, panels, bias, 50, 20, True)
        _ops.linear(x, panels, None, 50, 20, True, scale)
    for _ in range(n // 25):
        _ops.linear(x.T.contiguous().T, panels, bias, 50, 20, True)
        try: _ops.linear(x, panels, bias[:3], 50, 20, True)
        except (RuntimeError, ValueError): pass
        else: raise AssertionError
"""


@pytest.mark.skipif(not memory.TOLD, reason="/proc is Linux's")
def test_no_leak():
    # one handle of 8 bytes, in blocks of 32, of each call would be 3 MB
    assert leaked(LEAK, 10_000, 100_000) < 2**20


THREADS = """
import os, torch, rquant
from rquant import _native, _ops
panels = _native.pack(_native.quantize(torch.randn(2048, 2048), 8, -1, True))
x = torch.randn(64, 2048)
{settings}
for _ in range(5): {op}(x, panels, None, 2048, 2048, True)
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize(
    ("settings", "environment"),
    [
        ("torch.set_num_threads(5)", {}),
        ("torch.set_num_threads(1); rquant.set_num_threads(4)", {}),
        ("torch.set_num_threads(1)", {"RQUANT_NUM_THREADS": "3"}),
        ("torch.set_num_threads(2); rquant.set_num_threads(4); rquant._threads._after_fork()", {}),
    ],
)
def test_same_number_of_threads(settings, environment):
    counts = {
        run(THREADS.format(settings=settings, op=op), **environment)
        for op in ("_ops.linear", "_ops.linear_python")
    }
    assert len(counts) == 1


def test_threads_call_at_the_same_time(panels):
    x = torch.randn(6, 50)
    want, wrong = _ops.linear(x, panels, None, 50, 20, True), []

    def call():
        for i in range(200):
            if i % 2:
                wrong.extend([] if torch.equal(_ops.linear(x, panels, None, 50, 20, True), want) else [i])
            else:
                try:
                    _ops.checked_linear(x[:, 1:], panels, None, 50, 20, True)
                except ValueError as error:
                    wrong.extend([] if "expected a last dimension" in str(error) else [error])

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
