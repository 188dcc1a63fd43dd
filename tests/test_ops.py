"""The ops as torch sees them: schemas, fakes; the reference as oracle; every instruction set."""

import pytest
import torch
from torch import nn
from torch.library import opcheck

import rquant
from rquant import _autograd, _fake_quantize, _native, _ops, optimize  # noqa: F401 (registers ops)
from rquant._backends import reference
from rquant._backends.elsewhere import only_on_cpu

CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.fixture(
    scope="module",
    params=[(8, -1, True, "minmax"), (4, 16, False, "mse"), (2, 7, False, "minmax"), (4, -1, False, "hqq")],
    ids=str,
)
def parts(request):
    w = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    return w, optimize.by_arguments(w, *request.param), request.param


def calls(parts):
    """Every op's name with arguments of all kinds it takes."""
    w, q, scheme = parts
    panels, x, bias, ids = _native.pack(q), torch.randn(2, 3, 50), torch.randn(20), torch.tensor([[0, 19]])
    scales = torch.rand(2, 3) + 0.01
    for integer, given, scale in ((False, bias, None), (True, None, scales), (True, bias, scales[:1, :1])):
        yield "linear", (x, panels, given, 50, 20, integer, scale)
        yield "linear_python", (x, panels, given, 50, 20, integer, scale)
        yield "linear_canonical", (x, *q[:3], given, *q[3:], integer, scale)
        yield "linear_unfrozen", (x, w, bias, *scheme, integer)
    for learns in (x, bias):
        arguments = [t.clone().requires_grad_(t is learns) for t in (x, bias)]
        yield "linear_differentiable", (arguments[0], panels, arguments[1], 50, 20, True, scales)
        yield "linear_canonical_differentiable", (arguments[0], *q[:3], arguments[1], *q[3:], False, None)
    for chosen, kept in (((2.0, None), None), ((None, [3, 17]), w[:, [3, 17]])):
        yield "linear_outliers", (x, panels, bias, 50, 20, *chosen, kept)
        yield "linear_outliers_canonical", (x, *q[:3], None, *q[3:], *chosen, kept)
        yield "linear_outliers_unfrozen", (x, w, bias, *scheme, *chosen)
        learns = x.clone().requires_grad_()
        yield "linear_outliers_differentiable", (learns, panels, bias, 50, 20, *chosen, kept)
        yield "linear_outliers_canonical_differentiable", (learns, *q[:3], None, *q[3:], *chosen, kept)
        yield "round_rows", (x.flatten(0, 1), *chosen)
    for dtype in (torch.float32, torch.float16):
        yield "embedding", (ids, panels, 50, dtype)
        yield "embedding_canonical", (ids, *q, dtype)
        yield "dequantize", (panels, 20, 50, dtype)
        yield "dequantize_canonical", (*q, dtype)
        yield "quantize_rows", (x.flatten(0, 1).to(dtype),)
    yield "gemm_i32", (torch.ones(3, 50, dtype=torch.int8), panels, 20)
    yield "fake_quantize", (w, *scheme)
    yield "inside_range", (w, *scheme)
    learned = w, q.scale.float(), q.zero_point, q.bits, q.group_size
    yield "fake_quantize_learned", learned
    yield "fake_quantize_learned_backward", (torch.randn(w.shape), *learned)


def test_every_op_passes_opcheck(parts):
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("rquant::")}
    registered = {name for name in registered if "_static" not in name}  # test_static_ops has these
    seen = set()
    for name, arguments in calls(parts):
        seen.add(f"rquant::{name}")
        checks = (*CHECKS, "test_autograd_registration") if "differentiable" in name else CHECKS
        opcheck(getattr(torch.ops.rquant, name).default, arguments, test_utils=checks)
    assert registered == seen


def test_reference_is_the_oracle(parts):
    w, q, scheme = parts
    panels, x, ids = _native.pack(q), torch.randn(3, 50), torch.tensor([[0, 19]])
    x[1, 7] = torch.inf
    for integer in (False, True):
        want = reference.linear_canonical(x, q, None, integer)
        close = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}
        torch.testing.assert_close(_ops.linear(x, panels, None, 50, 20, integer), want, **close)
        torch.testing.assert_close(_ops.linear_unfrozen(x, w, None, *scheme, integer), want, **close)
        torch.testing.assert_close(reference.linear_unfrozen(x, w, None, *scheme, integer), want, **close)
        assert want[1].isnan().all()
    scales = torch.tensor([0.02, 0.02, 0.005])  # the last one clips
    for scale in (scales, scales[1:2]):
        want = reference.linear_canonical(x, q, None, True, scale)
        for got in (
            _ops.linear(x, panels, None, 50, 20, True, scale),
            _ops.linear_canonical(x, *q[:3], None, *q[3:], True, scale),
        ):
            torch.testing.assert_close(got, want, **close)
    assert torch.equal(
        _ops.embedding(ids, panels, 50, torch.float32), reference.embedding_canonical(ids, q, torch.float32)
    )
    assert torch.equal(_ops.fake_quantize(w, *scheme), reference.fake_quantize(w, *scheme))
    assert torch.equal(_ops.inside_range(w, *scheme), reference.inside_range(w, *scheme))
    codes, scale = _ops.quantize_rows(x)
    want_codes, want_scale = reference.quantize_rows(x)
    assert torch.equal(codes, want_codes)
    assert torch.equal(scale.nan_to_num(-1), want_scale.nan_to_num(-1))
    assert torch.equal(reference.pack_codes(reference.unpack_codes(q.codes, 50, q.bits), q.bits), q.codes)


def test_a_tensor_elsewhere_is_named():
    layer = rquant.Linear.from_float(nn.Linear(8, 4))
    with pytest.raises(ValueError, match="x: expected a tensor on cpu, where the weight is, got meta"):
        only_on_cpu(torch.zeros(1, 8, device="meta"), layer.held["_panels"])


INTEGER_PRODUCT = """
import itertools, torch, rquant
from rquant import _autograd, _fake_quantize, _native, _ops, optimize  # noqa: F401 (registers ops)
assert rquant.backend_info()["isa"] == {level!r}
generator = torch.Generator().manual_seed(0)
for bits, threads in itertools.product((8, 4, 2), (1, 2)):
    rquant.set_num_threads(threads)
    low, high = -(1 << bits - 1), 1 << bits - 1
    shapes = [(m, n, k) for m in (1, 5, 7, 13) for n in (1, 2, 10, 63, 65, 130) for k in (1, 3, 65, 129)]
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


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("weights", ["int8", "int4", "int2"])
def test_outputs_are_the_same_on_any_number_of_threads(weights, activations, set_num_threads):
    layer, seen = rquant.Linear.from_float(nn.Linear(640, 700), weights, activations), set()
    x = torch.randn(130, 640)
    for threads in (1, 2, 3):
        set_num_threads(threads)
        seen |= {layer(x[:m]).detach().numpy().tobytes() for m in (1, 130)}
    assert len(seen) == 2
