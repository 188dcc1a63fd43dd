"""The ops as torch sees them: schemas, fakes, compile, export, trace; the reference as oracle; every instruction set."""

import pytest
import torch
from torch import nn
from torch.library import opcheck

import rquant
from rquant import _native, _ops
from rquant._backends import reference

CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.fixture(scope="module", params=[(8, -1, True), (4, 16, False), (2, 7, False)], ids=str)
def parts(request):
    bits, group, symmetric = request.param
    w = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    return w, _native.quantize(w, bits, group, symmetric), (bits, group, symmetric)


def test_every_op_passes_opcheck(parts):
    w, q, scheme = parts
    panels, x, bias, ids = _native.pack(q), torch.randn(3, 50), torch.randn(20), torch.tensor([[0, 19]])
    for integer in (False, True):
        opcheck(_ops.linear, (x, panels, bias, 50, 20, integer), test_utils=CHECKS)
        opcheck(_ops.linear_canonical, (x, *q[:3], None, *q[3:], integer), test_utils=CHECKS)
        opcheck(_ops.linear_unfrozen, (x, w, bias, *scheme, integer), test_utils=CHECKS)
    opcheck(_ops.embedding, (ids, panels, 50, torch.float16), test_utils=CHECKS)
    opcheck(_ops.embedding_canonical, (ids, *q, torch.float32), test_utils=CHECKS)
    opcheck(_ops.gemm_i32, (torch.ones(3, 50, dtype=torch.int8), panels, 20), test_utils=CHECKS)
    opcheck(_ops.dequantize, (panels, 20, 50, torch.bfloat16), test_utils=CHECKS)
    opcheck(_ops.dequantize_canonical, (*q, torch.float32), test_utils=CHECKS)
    opcheck(_ops.fake_quantize, (w, *scheme), test_utils=CHECKS)
    opcheck(_ops.inside_range, (w, *scheme), test_utils=CHECKS)
    opcheck(_ops.quantize_rows, (x,), test_utils=CHECKS)


def test_reference_is_the_oracle(parts):
    w, q, scheme = parts
    panels, x, ids = _native.pack(q), torch.randn(3, 50), torch.tensor([[0, 19]])
    x[1, 7] = torch.inf
    for integer in (False, True):
        want = reference.linear_canonical(x, *q[:3], None, *q[3:], integer)
        close = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}
        torch.testing.assert_close(_ops.linear(x, panels, None, 50, 20, integer), want, **close)
        torch.testing.assert_close(_ops.linear_unfrozen(x, w, None, *scheme, integer), want, **close)
        torch.testing.assert_close(reference.linear_unfrozen(x, w, None, *scheme, integer), want, **close)
        assert want[1].isnan().all()
    assert torch.equal(
        _ops.embedding(ids, panels, 50, torch.float32), reference.embedding_canonical(ids, *q, torch.float32)
    )
    assert torch.equal(_ops.fake_quantize(w, *scheme), reference.fake_quantize(w, *scheme))
    assert torch.equal(_ops.inside_range(w, *scheme), reference.inside_range(w, *scheme))
    codes, scale = _ops.quantize_rows(x)
    want_codes, want_scale = reference.quantize_rows(x)
    assert torch.equal(codes, want_codes)
    assert torch.equal(scale.nan_to_num(-1), want_scale.nan_to_num(-1))
    assert torch.equal(reference.pack_codes(reference.unpack_codes(q.codes, 50, q.bits), q.bits), q.codes)


def network(activations=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 24), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))
    rquant.quantize(model, "int4", activations, include="*")
    return model


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("freeze", [True, False])
def test_compile_without_graph_breaks(activations, freeze):
    model, ids = network(activations), torch.arange(12).reshape(3, 4)
    if freeze:
        rquant.freeze(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(ids), model(ids))
    model.zero_grad()
    model(ids).sum().backward()
    want = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compiled(ids).sum().backward()
    for parameter, grad in zip(model.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


@pytest.mark.filterwarnings("ignore:.*jit.*")
def test_export_and_trace():
    model, ids = network("int8"), torch.arange(12).reshape(3, 4)
    rquant.freeze(model)
    y = model(ids)
    exported = torch.export.export(model, (ids,))
    assert torch.equal(exported.module()(ids), y)
    assert "torch.ops.rquant.linear.default" in str(exported.graph_module.code)
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(model, ids)(ids), y)


def test_a_tensor_elsewhere_is_named():
    layer = rquant.Linear.from_float(nn.Linear(8, 4))
    with pytest.raises(ValueError, match="x: expected a tensor on cpu, where the weight is, got meta"):
        _ops._elsewhere(torch.zeros(1, 8, device="meta"), layer.held["_panels"])


INTEGER_PRODUCT = """
import itertools, torch, rquant
from rquant import _native, _ops
assert rquant.backend_info()["isa"] == {level!r}
generator = torch.Generator().manual_seed(0)
for bits, threads in itertools.product((8, 4, 2), (1, 2)):
    rquant.set_num_threads(threads)
    low, high = -(1 << bits - 1), 1 << bits - 1
    shapes = [(m, n, k) for m in (1, 2, 5, 6, 7, 13) for n in (1, 2, 10, 63, 65, 130) for k in (1, 3, 4, 65, 129)]
    for m, n, k in [*shapes, (1, 1000, 7), (2, 2, 131071)]:
        w = torch.randint(low, high, (n, k), generator=generator, dtype=torch.int8)
        a = torch.randint(-128, 128, (m, k), generator=generator, dtype=torch.int8)
        a[0] = -128
        w[0] = low
        groups = torch.ones(n, 1)
        q = _native.QMatrix(_native.pack_codes(w, bits), groups, None, k, bits, -1)
        got = _ops.gemm_i32(a, _native.pack(q), n)
        assert got.dtype == torch.int32
        assert torch.equal(got.long(), a.long() @ w.long().T), (bits, threads, m, n, k)
k = 131072
q = _native.QMatrix(torch.zeros(1, k, dtype=torch.uint8), torch.ones(1, 1), None, k, 8, -1)
try: _ops.gemm_i32(torch.zeros(1, k, dtype=torch.int8), _native.pack(q), 1)
except ValueError as error: assert "131072" in str(error), error
else: raise AssertionError("k = 131072 was accepted")
"""


def test_integer_product_is_exact(isa):
    isa(INTEGER_PRODUCT.format(level=isa.level))


INTEGER_LINEAR = """
import hashlib, sys, torch, rquant
digest = hashlib.sha256()
for name, group in (("int8", -1), ("int8", 7), ("int4", 64), ("int4", 3), ("int2", 32), ("int2", 1), ("int4", 300)):
    for symmetric in (False, True):
        torch.manual_seed(0)
        layer = rquant.Linear.from_float(torch.nn.Linear(257, 130), name, "int8", group, symmetric)
        for m in (1, 2, 6, 33):
            x = torch.randn(m, 257)
            rquant.set_num_threads(1)
            y = layer(x)
            rquant.set_num_threads(2)
            assert torch.equal(layer(x), y)
            digest.update(y.detach().numpy().tobytes())
            one = rquant.Linear.from_float(torch.nn.Linear(257, 130), name, None, group, symmetric)
            two_threads = one(x)
            rquant.set_num_threads(1)
            assert torch.equal(one(x), two_threads)
print(digest.hexdigest())
"""
_digests = set()


def test_integer_linear_is_bit_identical_on_every_isa_and_thread_count(isa):
    _digests.add(isa(INTEGER_LINEAR))
    assert len(_digests) == 1


def test_a_level_this_cpu_lacks_is_an_error():
    import os
    import subprocess
    import sys

    script = "import rquant; rquant.numpy.quantize(__import__('numpy').ones((2, 2), 'float32'))"
    environment = {**os.environ, "RQUANT_ISA": "amx"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "RQUANT_ISA" in last
    assert "portable" in last
    assert "amx" in last
