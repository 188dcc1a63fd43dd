"""Ops between floats and codes, sums and pools by the native kernels and by the Python ones that they fall back to."""

import math
import sys
from functools import partial

import memory
import pytest
import torch
from processes import leaked, run
from test_torch_shim_static import FLOATS, INF, OPS, OUT, A, B, both, codes, panels
from torch import nn
from torch.nn import functional

import rquant
from rquant import _static_ops
from rquant._backends import cpu

LAST = torch.channels_last
native = pytest.mark.skipif(not cpu.NATIVE, reason="a torch for which there are no native kernels")
SHAPES = [
    (),
    (5,),
    (3, 7),
    (2, 3, 5),
    (1, 1, 1, 1),
    (3, 5, 1, 1),
    (1, 3, 9, 7),
    (3, 4, 5, 6),
    (2, 70, 3, 3),
    (2, 1, 3, 2, 4),
]
ROOM = [*SHAPES, (0, 3), (2, 0, 4, 4), (1,) * 9]
BAD = [math.nan, INF, -INF, 3e38]


def same(name, *arguments):
    """Both kernels' results, or both kernels' errors."""
    got, want = both(name, *arguments)
    if isinstance(want, str):
        assert isinstance(got, str)
        assert want.splitlines()[0] in got
        return
    for one, other in zip(*((t if isinstance(t, tuple) else (t,)) for t in (got, want)), strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert torch.equal(one, other)


def orders(x):
    """x in several orders of memory, dense and not."""
    yield x
    if x.dim() > 1:
        yield x.transpose(0, 1).contiguous().transpose(0, 1)
        yield x.transpose(0, -1).contiguous().transpose(0, -1)
        yield torch.cat([x, x], -1)[..., : x.shape[-1]]
        yield x[:1].expand(x.shape)
    if x.dim() == 4:
        yield x.contiguous()
        yield x.contiguous(memory_format=LAST)
        yield x[..., 1:]
        yield x[:, 1:]
        n, c, h, w = x.shape
        yield torch.empty_strided(x.shape, (0 if n == 1 else c * h * w, h * w, w, 1), dtype=x.dtype).copy_(x)


def floats(shape, dtype):
    x = (torch.randn(shape) * 5).to(dtype)
    if x.numel() > 4:
        x.view(-1)[-1] = BAD[x.numel() % 4]
    return x


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", ROOM, ids=str)
def test_floats_to_codes(shape, dtype):
    for x in orders(floats(shape, dtype)):
        same("quantize_static", x, *A)
        same("quantize_images_static", x, *A)


@pytest.mark.parametrize("channels", [*range(1, 9), 17, 64, 70])
def test_pictures(channels):
    for x in orders(torch.randn(2, channels, 5, 3)):
        same("quantize_images_static", x, *B)


def test_one_sample_that_is_not_finite():
    for order in (torch.contiguous_format, LAST):
        x = torch.randn(3, 3, 4, 4).contiguous(memory_format=order)
        x[1, 2, 3, 0] = math.nan
        for op in (OPS.quantize_images_static, OPS.quantize_static):
            assert op(x, *A)[1].tolist() == [True, False, True]


@pytest.mark.parametrize("shape", ROOM, ids=str)
def test_codes_to_codes_and_floats(shape):
    for q in orders(codes(*shape)):
        for dtype in FLOATS:
            same("dequantize_static", q, *A, dtype)
        same("requantize_static", q, *A, -INF, INF, *OUT)
        same("requantize_static", q, *A, -1.0, 1.5, *B)
        for other in orders(codes(*q.shape)):
            same("add_static", q, *A, other, *B, 0.0, INF, *OUT)


@pytest.mark.parametrize("channels", [*range(1, 20), 33, 64, 70])
def test_pools_of_any_channels(channels):
    for batch in (1, 3):
        x = codes(batch, channels, 6, 5)
        same("max_pool_static", x, (3, 2), (2, 1), (1, 0), (1, 2), False)
        same("avg_pool_static", x, *A, (3, 2), (2, 1), (1, 0), False, True, None, *OUT)
        same("adaptive_avg_pool_static", x, *A, (1, 1), *OUT)
        same("adaptive_avg_pool_static", x, *A, (4, 7), *OUT)


@pytest.mark.parametrize("shape", [shape for shape in ROOM if len(shape) == 4], ids=str)
@pytest.mark.parametrize("ceil", [False, True])
def test_pools(shape, ceil):
    for x in orders(codes(*shape)):
        for kernel, stride, padding, dilation in (
            ((1, 1), (1, 1), (0, 0), (1, 1)),
            ((3, 3), (2, 2), (1, 1), (1, 1)),
            ((2, 3), (1, 3), (1, 0), (2, 1)),
        ):
            same("max_pool_static", x, kernel, stride, padding, dilation, ceil)
            for inside, divisor in ((True, None), (False, None), (True, 5), (False, 1)):
                same("avg_pool_static", x, *A, kernel, stride, padding, ceil, inside, divisor, *OUT)
        for size in ((1, 1), (2, 3), (0, 1)):
            same("adaptive_avg_pool_static", x, *A, size, *OUT)


IMAGE, ROW = codes(2, 8, 6, 6), torch.ones(3, 4)
SCALE, ZERO = OUT
WRONG = {
    "quantize_static": [
        (ROW.double(), *A),
        (ROW, A[0].half(), A[1]),
        (ROW, A[0], A[1].int()),
        (ROW, -A[0], A[1]),
        (ROW, A[0] * math.nan, A[1]),
        (ROW, torch.ones(3), A[1]),
        (ROW, A[0], torch.tensor([-128], dtype=torch.int8)),
    ],
    "quantize_images_static": [(ROW, *A), (IMAGE, *A), (IMAGE.float(), torch.ones(0), A[1])],
    "dequantize_static": [(ROW, *A, torch.float32), (IMAGE, *A, torch.int32), (IMAGE, -A[0], A[1], torch.float16)],
    "requantize_static": [
        (ROW, *A, 0.0, 1.0, *OUT),
        (IMAGE, *A, 1.0, 0.0, *OUT),
        (IMAGE, *A, math.nan, 0.0, *OUT),
        (IMAGE, *A, 0.0, 1.0, -SCALE, ZERO),
        (IMAGE, *A, 0.0, 1.0, SCALE, ZERO.repeat(2)),
    ],
    "add_static": [
        (IMAGE, *A, IMAGE[:1], *B, 0.0, 1.0, *OUT),
        (IMAGE, *A, IMAGE.float(), *B, 0.0, 1.0, *OUT),
        (IMAGE, *A, IMAGE, B[0] * 0, B[1], 0.0, 1.0, *OUT),
    ],
    "max_pool_static": [
        (IMAGE[0], (2, 2), (2, 2), (0, 0), (1, 1), False),
        (IMAGE.float(), (2, 2), (2, 2), (0, 0), (1, 1), False),
        (IMAGE, (2,), (2, 2), (0, 0), (1, 1), False),
        (IMAGE, (2, 2), (0, 2), (0, 0), (1, 1), False),
        (IMAGE, (2, 2), (2, 2), (-1, 0), (1, 1), False),
        (IMAGE, (2, 2), (2, 2), (2, 0), (1, 1), False),
        (IMAGE, (9, 9), (2, 2), (0, 0), (1, 1), True),
    ],
    "avg_pool_static": [
        (IMAGE, *A, (2, 2), (2, 2), (0, 0), False, True, 0, *OUT),
        (IMAGE, *A, (2, 2), (2, 2), (0, 0), False, True, 1 << 40, *OUT),
        (IMAGE, *A, (2, 2), (2, 2), (0, 0, 0), False, True, None, *OUT),
        (IMAGE, SCALE.repeat(2), A[1], (2, 2), (2, 2), (0, 0), False, True, None, *OUT),
    ],
    "adaptive_avg_pool_static": [
        (IMAGE, *A, (1,), *OUT),
        (IMAGE, *A, (-1, 1), *OUT),
        (IMAGE, *A, (1, 1), SCALE.double(), ZERO),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_same_errors(name):
    for arguments in WRONG[name]:
        with pytest.raises((ValueError, OverflowError)) as want:
            getattr(OPS, f"{name}_python")(*arguments)
        got, _ = both(name, *arguments)
        assert str(want.value) in got
        with pytest.raises(type(want.value)) as seen:  # as layers call it
            getattr(_static_ops, name)(*arguments)
        assert str(seen.value) == str(want.value)
        assert seen.value.__context__ is None


USUAL = {
    "quantize_static": (torch.randn(3, 5), *A),
    "quantize_images_static": (torch.randn(2, 3, 6, 5), *A),
    "dequantize_static": (IMAGE, *A, torch.float32),
    "requantize_static": (IMAGE, *A, 0.0, 1.0, *OUT),
    "add_static": (IMAGE, *A, IMAGE, *B, 0.0, INF, *OUT),
    "max_pool_static": (IMAGE, (2, 2), (2, 2), (0, 0), (1, 1), False),
    "avg_pool_static": (IMAGE, *A, (2, 2), (2, 2), (0, 0), False, True, None, *OUT),
    "adaptive_avg_pool_static": (IMAGE, *A, (1, 1), *OUT),
}


def python_of(call):
    """Functions of rquant's that the call ran in Python."""
    seen = []

    def note(frame, event, _):
        if event == "call" and "rquant" in frame.f_globals.get("__name__", ""):
            seen.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return seen


@native
@pytest.mark.parametrize("name", USUAL)
def test_the_usual_call_runs_no_python(name):
    assert "torch_shim" in torch._C._dispatch_dump(f"rquant::{name}")
    assert python_of(lambda: getattr(OPS, f"{name}_python")(*USUAL[name]))[0] == name
    assert python_of(lambda: getattr(OPS, name)(*USUAL[name])) == []


@native
def test_other_memory_takes_no_python_either():
    image, row = codes(2, 8, 6, 6).contiguous(), codes(8, 4).T
    none = (None, None, None, -1.0, 1.0, *OUT, None)
    shape = (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, False, (0, 0)
    for name, arguments in {
        "quantize_images_static": (image.float(), *A),
        "max_pool_static": (image, *USUAL["max_pool_static"][1:]),
        "avg_pool_static": (image, *USUAL["avg_pool_static"][1:]),
        "adaptive_avg_pool_static": (image, *A, (1, 1), *OUT),
        "linear_static": (row, *A, panels(5, 8), None, 5, *none),
        "conv_static": (image, *A, panels(5, 8), None, 5, *shape, *none),
    }.items():
        same(name, *arguments)
        assert python_of(partial(getattr(OPS, name), *arguments)) == []


class Net(nn.Module):
    """Every op of this file but the way back to floats."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 7, 3, stride=2)
        self.last = nn.Linear(14, 5)

    def forward(self, x):
        x = self.first(x).relu()
        x = functional.max_pool2d(x, 3, 1, 1) + functional.avg_pool2d(x, 3, 1, 1)
        x = functional.adaptive_avg_pool2d(self.second(x).relu(), (2, 1))
        return self.last(x.flatten(1))


@native
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*deprecated:FutureWarning")
def test_programs_of_a_network_give_its_integers():
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(3, 3, 12, 11)
    rquant.quantize(model, activations="int8")
    rquant.calibrate(model, [x])
    rquant.freeze(model)
    with torch.no_grad():
        want, traced = model(x), torch.jit.freeze(torch.jit.trace(model, x))
        used = {node.kind() for node in traced.graph.nodes()}
        names = "quantize_images", "conv", "max_pool", "avg_pool", "add", "adaptive_avg_pool", "linear"
        assert {f"rquant::{name}_static" for name in names} <= used
        assert "aten::contiguous" not in used
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for program in (traced, torch.export.export(model, (x,)).module(), compiled):
            for _ in range(3):
                assert torch.equal(program(x), want)
            y = x.contiguous(memory_format=LAST)
            assert torch.equal(program(y), want)
            y[1, 0, 0, 0] = math.nan
            assert program(y).isfinite().all(1).tolist() == [True, False, True]
        assert python_of(lambda: traced(x)) == []


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_lists_of_tensors_are_used_again():
    def join(x):
        return tuple(OPS.concat_static([x, x], [A[0], B[0]], [A[1], B[1]], 1, *to) for to in (A, B))

    program, want = torch.jit.trace(join, IMAGE, check_trace=False), join(IMAGE)
    for _ in range(4):
        assert all(map(torch.equal, program(IMAGE), want))


THREADS = """
import os, torch, rquant
from test_torch_shim_codes import OPS, USUAL
torch.set_num_threads(1)
for threads, (name, (x, *rest)) in enumerate(USUAL.items(), 2):
    image = x.repeat(8, 1, 40, 40) if x.dim() == 4 else x.repeat(40, 40, 40, 40)
    rest = [image if other is x else other for other in rest]
    rquant.set_num_threads(threads)
    before = len(os.listdir("/proc/self/task"))
    getattr(OPS, name)(image, *rest)
    assert len(os.listdir("/proc/self/task")) > before, name
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_large_tensors_have_threads():
    run(THREADS)


LEAK = """
from test_torch_shim_codes import OPS, USUAL, WRONG

def calls(n):
    for name, arguments in USUAL.items():
        op, wrong = getattr(OPS, name), WRONG[name][0]
        for _ in range(n):
            op(*arguments)
        for _ in range(n // 25):
            try: op(*wrong)
            except RuntimeError: pass
            else: raise AssertionError
"""


@pytest.mark.skipif(not memory.TOLD, reason="/proc is Linux's")
def test_no_leak():
    # a handle of 8 bytes, in blocks of 32, of each call would be 2.5 MB
    assert leaked(LEAK, 1_000, 10_000) < 2**20
