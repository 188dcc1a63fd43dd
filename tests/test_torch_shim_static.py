"""`rquant::linear_static` and `conv_static` by the native kernel and by the Python one that it falls back to."""

import math
import re

import memory
import pytest
import torch
from processes import leaked

from rquant import _native, optimize
from rquant._backends import cpu
from rquant._static_ops import INF

OPS = torch.ops.rquant
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
A, B, OUT = (
    (torch.tensor([s]), torch.tensor([z], dtype=torch.int8)) for s, z in ((0.05, -3), (0.02, 7), (0.1, -20))
)


def codes(*shape):
    q = torch.randint(-127, 128, shape, dtype=torch.int8)
    return q.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else q


def panels(n, k, kind=8, group=-1, symmetric=True):
    return _native.pack(optimize.by_arguments(torch.randn(n, k), kind, group, symmetric, "minmax"))


def both(name, *arguments):
    results = []
    for op in (getattr(OPS, name), getattr(OPS, f"{name}_python")):
        try:
            results.append(op(*arguments))
        except (ValueError, RuntimeError, OverflowError) as error:
            results.append(re.sub(r"\nException raised.*", "", str(error), flags=re.DOTALL).strip())
    return results


def same(name, *arguments):
    got, want = both(name, *arguments)
    assert (got.dtype, got.shape, got.stride()) == (want.dtype, want.shape, want.stride())
    assert torch.equal(got, want)


def ends(addend):
    """What follows the addend: all kinds of outputs."""
    for bias in (None, *FLOATS):
        yield bias, (*addend, -INF, 1.5, *OUT, None)
        for dtype in FLOATS:
            yield bias, (*addend, 0.0, INF, None, None, dtype)


@pytest.mark.skipif(not cpu.NATIVE, reason="a torch for which there are no native kernels")
def test_they_are_native():
    for name in ("linear_static", "conv_static"):
        assert "torch_shim" in torch._C._dispatch_dump(f"rquant::{name}")


@pytest.mark.parametrize("scheme", [(8, -1, True), (8, -1, False), (4, 8, True)], ids=str)
@pytest.mark.parametrize("shape", [(24,), (3, 24), (2, 3, 24), (2, 1, 3, 24), (0, 24), (1,) * 8 + (24,)])
def test_linear(shape, scheme):
    x, w = torch.randint(-127, 128, shape, dtype=torch.int8), panels(20, 24, *scheme)
    added = torch.randint(-127, 128, (*shape[:-1], 20), dtype=torch.int8)
    for addend in ((None, None, None), (added, *B)):
        for bias, rest in ends(addend):
            bias = None if bias is None else torch.randn(20).to(bias)
            same("linear_static", x, *A, w, bias, 20, *rest)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_conv(batch, groups, transposed):
    x, w = codes(batch, 8, 9, 7), panels(16, 6 * 8 // groups)
    shape = (2, 3), (2, 1), (1, 0, 0, 2), (1, 2), groups, transposed, (1, 0) if transposed else (0, 0)
    if batch:
        plain = OPS.conv_static(x, *A, w, None, 16, *shape, None, None, None, -1.0, 1.0, *OUT, None)
        added = codes(*plain.shape)
    else:
        added = None
    scales = A[0] if batch < 2 else torch.rand(batch) + 0.01
    for addend in ((None, None, None), (added, *B) if batch else (None, None, None)):
        for bias, rest in ends(addend):
            bias = None if bias is None else torch.randn(16).to(bias)
            same("conv_static", x, scales, A[1], w, bias, 16, *shape, *rest)


PLAIN = ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, False, (0, 0))
NO = (None, None, None, -1.0, 1.0, *OUT, None)


@pytest.mark.parametrize("memory", ["channels first", "strided", "offset", "one pixel", "one channel"])
def test_unusual_memory(memory):
    x = codes(4, 8, 6, 6)
    if memory == "channels first":
        x = x.contiguous()
    elif memory == "strided":
        x = x[:, :, ::2, ::2]
    elif memory == "offset":
        x = x[1:3]
    elif memory == "one pixel":
        x = codes(4, 8, 1, 1).contiguous()
    elif memory == "one channel":
        x = codes(4, 1, 6, 6).contiguous()
    k = x.shape[1]
    added = codes(x.shape[0], 5, *x.shape[2:])
    for addend in (added, added.contiguous(), added[..., :1]):
        got, want = both("conv_static", x, *A, panels(5, k), None, 5, *PLAIN, addend, *B, *NO[3:])
        assert torch.equal(got, want) if isinstance(want, torch.Tensor) else want in got


X, W = codes(2, 8, 6, 6), panels(5, 8)
WRONG = {
    "channels": (X[:, :4].contiguous(memory_format=torch.channels_last), *A, W, None, 5, *PLAIN, *NO),
    "dimensions": (X[0], *A, W, None, 5, *PLAIN, *NO),
    "out channels": (X, *A, W, None, 6, *PLAIN, *NO),
    "dtype": (X.float(), *A, W, None, 5, *PLAIN, *NO),
    "bias length": (X, *A, W, torch.randn(4), 5, *PLAIN, *NO),
    "bias dtype": (X, *A, W, torch.ones(5).int(), 5, *PLAIN, *NO),
    "scale dtype": (X, A[0].half(), A[1], W, None, 5, *PLAIN, *NO),
    "scales": (X, torch.ones(3), A[1], W, None, 5, *PLAIN, *NO),
    "negative scale": (X, -A[0], A[1], W, None, 5, *PLAIN, *NO),
    "zeros": (X, A[0], torch.zeros(2, dtype=torch.int8), W, None, 5, *PLAIN, *NO),
    "kernel": (X, *A, W, None, 5, (1,), *PLAIN[1:], *NO),
    "stride": (X, *A, W, None, 5, (1, 1), (0, 1), *PLAIN[2:], *NO),
    "negative padding": (X, *A, W, None, 5, (1, 1), (1, 1), (-1, 0, 0, 0), *PLAIN[3:], *NO),
    "addend alone": (X, *A, W, None, 5, *PLAIN, codes(2, 5, 6, 6), None, None, *NO[3:]),
    "addend shape": (X, *A, W, None, 5, *PLAIN, codes(1, 5, 6, 6), *B, *NO[3:]),
    "out scale alone": (X, *A, W, None, 5, *PLAIN, *NO[:5], OUT[0], None, None),
    "output dtype": (X, *A, W, None, 5, *PLAIN, *NO[:5], None, None, torch.int32),
    "nan": (X, *A, W, None, 5, *PLAIN, None, None, None, math.nan, 1.0, *OUT, None),
    "panels": (X, *A, W[:-1], None, 5, *PLAIN, *NO),
    "zeroed panels": (X, *A, torch.zeros_like(W), None, 5, *PLAIN, *NO),
}


@pytest.mark.parametrize("what", WRONG)
def test_same_errors(what):
    got, want = both("conv_static", *WRONG[what])
    assert isinstance(want, str)
    assert isinstance(got, str)
    assert want.splitlines()[0] in got


LEAK = """
import torch
from test_torch_shim_static import A, B, NO, OPS, PLAIN, W, X, codes

added, bias = codes(2, 5, 6, 6), torch.randn(5)
rows, lines = torch.ones(4, 8, dtype=torch.int8), torch.ones(4, 5, dtype=torch.int8)

def calls(n):
    for _ in range(n):
        OPS.conv_static(X, *A, W, bias, 5, *PLAIN, added, *B, *NO[3:])
        OPS.conv_static(X, *A, W, None, 5, *PLAIN, *NO[:5], None, None, torch.float32)
        OPS.linear_static(rows, *A, W, bias, 5, lines, *B, *NO[3:])
    for _ in range(n // 25):
        OPS.conv_static(X.contiguous(), *A, W, bias, 5, *PLAIN, added, *B, *NO[3:])
        try: OPS.conv_static(X, *A, W, bias[:3], 5, *PLAIN, added, *B, *NO[3:])
        except (RuntimeError, ValueError): pass
        else: raise AssertionError
"""


@pytest.mark.skipif(not memory.TOLD, reason="/proc is Linux's")
def test_no_leak():
    # a handle of 8 bytes, in blocks of 32, of each call would be 1.9 MB
    assert leaked(LEAK, 3_000, 20_000) < 2**20
