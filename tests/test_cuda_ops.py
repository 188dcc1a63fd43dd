"""The ops on CUDA tensors as torch sees them, and whole models on the emulated driver; what has no kernel says so."""

import os
import subprocess
import sys

import cuda_emulator
import pytest

pytestmark = pytest.mark.skipif(cuda_emulator.COMPILER is None, reason="no C++ compiler for the emulator")

WITH_KERNELS = {
    "dequantize_canonical",
    "embedding_canonical",
    "linear_canonical",
    "linear_canonical_static",
    "linear_outliers_canonical",
    "linear_outliers_unfrozen",
    "linear_unfrozen",
    "quantize_rows",
}


def test_no_call_to_cuda_in_fake_mode_or_at_import(cuda_driver):
    """Every op's fake gives the shape, dtype and CUDA device of the result, and the driver is never begun."""
    script = f"""
import sys, ctypes
import torch, rquant
sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
import test_ops, test_static_ops
from rquant import optimize, _static_ops
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

w = torch.randn(20, 50)
scheme = (4, 16, False, "minmax")
calls = [*test_ops.calls((w, optimize.by_arguments(w, *scheme), scheme)), *test_static_ops.calls()]
assert len({{name for name, _ in calls}}) > 30
for name, arguments in calls:
    op = getattr(torch.ops.rquant, name).default
    want = op(*arguments)
    with FakeTensorMode() as mode:
        there = tree_map_only(torch.Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda:0"), arguments)
        got = op(*there)
    pairs = zip(*((t if isinstance(t, tuple) else (t,)) for t in (got, want)), strict=True)
    for fake, real in pairs:
        assert (fake.shape, fake.dtype, str(fake.device)) == (real.shape, real.dtype, "cuda:0"), name
assert not rquant._backends.cuda.ready.cache_info().currsize
assert not ctypes.CDLL("libcuda.so.1").rquant_emulator_initialized()
"""
    env = {**os.environ, "LD_LIBRARY_PATH": str(cuda_driver)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_cuda_kernels_pass_opcheck_and_equal_the_reference(cuda_driver, cubins):
    """They take the place of the CPU's, for tensors posing as the device's."""
    said = cuda_emulator.run(
        """
import warnings; warnings.simplefilter("ignore")
import cuda_pose, test_ops
import test_static_ops
from rquant import optimize
from torch.library import opcheck

pose = torch.library.Library("rquant", "IMPL")
names = {name.removeprefix("rquant::") for name in cuda_pose.names()}
for name in names:
    pose.impl(name, cuda_pose.kernel_of(name), "CPU", allow_override=True)
w, static = torch.randn(20, 50), test_static_ops.calls()
for scheme in ((8, -1, True, "minmax"), (4, 32, False, "minmax"), (2, 7, False, "mse")):
    for name, arguments in itertools.chain(test_ops.calls((w, optimize.by_arguments(w, *scheme), scheme)), static):
        if name in names:
            op = getattr(torch.ops.rquant, name).default
            opcheck(op, arguments, test_utils=test_ops.CHECKS)
            got, want = op(*arguments), cuda_pose.kernel_of(name, "XPU")(*arguments)
            # of codes by another order of roundings
            atol = 1 if name.endswith("_static") and got.dtype == torch.int8 else 1e-5
            torch.testing.assert_close(got, want, rtol=1e-5, atol=atol)
print(*sorted(names))
""",
        cuda_driver,
        cubins,
    )
    assert set(said.split()) == WITH_KERNELS


MODEL = """
import warnings
import cuda_pose
from torch import nn
keep = cuda_pose.install()
warnings.simplefilter("ignore")

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(10, 32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(x + self.down(torch.relu(self.up(x))))

def made(weights, activations=None, outliers=None):
    model, columns = Model(), isinstance(outliers, list)
    rquant.quantize(model, weights, activations, outliers=2.0 if columns else outliers)
    for layer in (model.up, model.down) if columns else ():
        layer.fix_outliers(outliers)
    rquant.freeze(model)
    return model

ids = torch.arange(10)
"""


def test_models_run_the_kernels(cuda_driver, cubins):
    """Weight-only in float16, int8 activations in float32, float8, LLM.int8() by a threshold and by columns."""
    cuda_emulator.run(
        MODEL
        + """
for weights, activations, dtype, outliers in (
    ("int8", None, torch.half, None), ("int4", None, torch.half, None), ("int2", None, torch.half, None),
    ("int8", "int8", torch.float, None), ("int4", "int8", torch.float, None), ("float8", None, torch.float, None),
    ("int8", "int8", torch.float, 1.5), ("int4", "int8", torch.float, [3, 17]),
):
    model = made(weights, activations, outliers)
    want, before = model(ids).detach(), launches()
    model.to("far").to(dtype)
    got = model(ids.to("far"))
    assert got.device.type == "far" and got.dtype == dtype
    assert launches() >= before + 4, (weights, activations, launches() - before)
    close = 2e-2 if dtype == torch.half else 1e-4
    torch.testing.assert_close(got.cpu().float(), want, rtol=close, atol=close)
""",
        cuda_driver,
        cubins,
    )


def test_calibrated_linear_layers_run_the_kernel(cuda_driver, cubins):
    """Codes within one of the reference's, where a sum rounds the other way; the weight's sums are taken once, and anew
    when it changes."""
    cuda_emulator.run(
        """
from rquant import optimize
from rquant._backends import cuda_static, static_canonical
INF = float("inf")
for kind, group, symmetric in ((8, -1, True), (4, 32, False), (2, 32, False), (8, -1, False)):
    q = optimize.by_arguments(torch.randn(40, 96), kind, group, symmetric, "minmax")
    a, out = (torch.tensor([0.03]), torch.tensor([-20], dtype=torch.int8)), (torch.tensor([0.1]), torch.tensor([7], dtype=torch.int8))
    added = torch.randint(-127, 128, (4, 5, 40)).to(torch.int8), torch.tensor([0.02]), torch.tensor([3], dtype=torch.int8)
    for rest in (
        (None, None, None, -INF, INF, None, None, torch.float32),
        (None, None, None, 0.0, INF, *out, None),
        (*added, 0.0, 6.0, *out, None),
    ):
        for bias in (None, torch.randn(40)):
            x = torch.randint(-127, 128, (4, 5, 96)).to(torch.int8)
            before = launches()
            arguments = (x, *a, *q[:3], kind, group, bias, *rest)
            got = cuda_static.linear_canonical_static(*arguments)
            assert 1 <= launches() - before <= 2
            want = static_canonical.linear_canonical_static(*arguments)
            assert got.dtype == want.dtype and got.shape == want.shape
            if got.dtype == torch.int8:
                off = (got.int() - want.int()).abs()
                assert off.max() <= 1 and (off > 0).float().mean() < 0.01
            else:
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    before = launches()
    cuda_static.linear_canonical_static(*arguments)
    assert launches() == before + 1
    q.scale.mul_(2)
    cuda_static.linear_canonical_static(*arguments)
    assert launches() == before + 3
""",
        cuda_driver,
        cubins,
    )


def test_gradients_for_the_input(cuda_driver, cubins):
    """dx = dy @ W of the weight that the kernel dequantizes, in eager mode and through fixed columns."""
    cuda_emulator.run(
        MODEL
        + """
for activations, options in ((None, {}), ("int8", {}), ("int8", {"outliers": [3]})):
    layer = rquant.Linear.from_float(nn.Linear(32, 48), "int4", activations, **options)
    x, upstream, grads = torch.randn(3, 32), torch.randn(3, 48), {}
    for device in ("cpu", "far"):
        layer.to(device).zero_grad()
        there = x.detach().to(device).requires_grad_()
        out = layer(there)
        before = launches()
        out.backward(upstream.to(device))
        assert device == "cpu" or launches() > before
        grads[device] = there.grad.cpu(), layer.bias.grad.cpu()
    torch.testing.assert_close(grads["far"], grads["cpu"], rtol=1e-5, atol=1e-5)
""",
        cuda_driver,
        cubins,
    )


def test_warmup_loads_what_a_graph_needs(cuda_driver, cubins):
    """While the stream records, a kernel that is not loaded is an error that names `warmup`; after it nothing is missing."""
    cuda_emulator.run(
        MODEL
        + """
from rquant.cuda import warmup
assert warmup(made("int4")) == 0 and not launches()  # it is on the CPU
models = [made("int4").to("far").half(), made("int8", "int8").to("far"), made("int4", "int8", outliers=[3]).to("far")]
for model in models:
    native_cuda.place = lambda tensor: (0, 0x1001)  # the emulator takes odd streams for recording ones
    if model is models[0]:
        try:
            model(ids.to("far"))
        except RuntimeError as error:
            assert "capturing a graph: call rquant.cuda.warmup(model) before" in str(error), error
        else:
            raise AssertionError
    native_cuda.place = lambda tensor: (0, 0)
    before = launches()
    assert 0 < warmup(model) <= launches() - before + 4
    again = launches()
    warmup(model)
    assert launches() - again == again - before
    native_cuda.place = lambda tensor: (0, 0x1001)
    for rows in (1, 9, 40, 150):
        model(torch.arange(10).repeat(15)[:rows].to("far"))
    assert state()[1] == 0x1001

native_cuda.place = lambda tensor: (0, 0)
static = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
rquant.quantize(static, "int2", "int8")
with rquant.Calibration():
    static(torch.randn(9, 32))
rquant.freeze(static)
static.to("far")
before = launches()
warmup(static)
native_cuda.place = lambda tensor: (0, 0x1001)
for rows in (1, 9, 40):
    static(torch.randn(rows, 32).to("far")).cpu()
assert launches() > before
""",
        cuda_driver,
        cubins,
    )


def test_what_has_no_kernel_is_said_once_with_the_remedy(cuda_driver, cubins):
    cuda_emulator.run(
        """
import warnings
from rquant._backends import elsewhere

def said(call):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call(), call()
    return [str(w.message) for w in seen]

def product(q, dtype=torch.half, integer=False, rows=3):
    x = torch.randn(rows, 64).to(dtype)
    return said(lambda: cuda.linear_canonical(x, q, None, integer))

def one(messages, *words):
    assert len(messages) == 1 and all(word in messages[0] for word in words), messages

plain, odd = (_native.quantize(torch.randn(20, 64), 4, group, False) for group in (32, 20))
assert not product(plain) and not product(plain, torch.float, True)
assert not product(plain, torch.float)
one(product(plain, torch.float, rows=9), "rquant::linear_canonical", "x is float32", "model.half()")
one(product(odd), "groups of a multiple of 32, and the weight has 20", "group_size 32, 64 or 128")
assert not product(odd) and not product(plain, torch.float, rows=9)
one(product(plain, torch.double), "torch.float64", "model.half()")
one(said(lambda: cuda.dequantize_canonical(plain, torch.double)), "rquant::dequantize_canonical", "torch.float64")

class There(torch.Tensor):
    device = torch.device("cuda", 1)
    @classmethod
    def __torch_function__(cls, function, types, arguments=(), kwargs=None):
        return super().__torch_function__(function, types, arguments, kwargs or {})

def add_static(x):
    return x
def inside_range(x):
    return x
x = torch.ones(2).as_subclass(There)
one(said(lambda: elsewhere.on_any_device(add_static)(x)), "rquant::add_static", "no CUDA kernel", "calibrated activations")
one(said(lambda: elsewhere.on_any_device(inside_range)(x)), "rquant::inside_range", "freeze the model")
try:
    elsewhere.on_any_device(add_static)(x, torch.ones(2))
except ValueError as error:
    assert "expected a tensor on cpu" in str(error) and "got cuda:1" in str(error), error
try:
    cuda.linear_canonical(x.reshape(1, 2), plain, None, False)
except ValueError as error:
    assert str(error) == "x: expected a tensor on cpu, where the weight is, got cuda:1", error
else:
    raise AssertionError
""",
        cuda_driver,
        cubins,
    )
