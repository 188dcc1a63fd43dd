"""float8 weights and activations: every byte is torch's own conversion's, and what is computed is what it says."""

import copy

import pytest
import torch
from hypothesis import given, settings
from test_optimize import matrices
from test_tensor import same
from torch import nn

import rquant
from rquant import _native
from rquant._backends import reference

FLOATS = {"float8": (43, torch.float8_e4m3fn), "qfloat8_e5m2": (52, torch.float8_e5m2)}


@settings(max_examples=100, deadline=None)
@given(matrices())
def test_every_byte_is_torch_s(x):
    for name, (kind, dtype) in FLOATS.items():
        for group in (-1, 1, 7, 32):
            got, want = _native.quantize(x, kind, group, True), reference.quantize(x, kind, group, True)
            assert same(got.scale, want.scale)
            assert same(got.codes, want.codes), name
            floats = _native.dequantize(got, torch.empty(x.shape))
            assert same(floats, reference.dequantize_canonical(want, torch.float32))
            assert floats.isfinite().all()
        q = rquant.quantize_tensor(x, name)
        assert q.int_repr().dtype == dtype
        assert torch.equal(q.int_repr().float() * q.scale, q.dequantize())


def test_every_code_reads_back_on_every_instruction_set(isa):
    print(
        isa("""
import torch
from rquant import _native, _ops
for kind, dtype in ((43, torch.float8_e4m3fn), (52, torch.float8_e5m2)):
    codes = torch.arange(256, dtype=torch.uint8)
    want = codes.view(dtype).float()
    codes = codes[want.isfinite()].reshape(2, -1)
    want = want[want.isfinite()].reshape(2, -1)
    n, k = want.shape
    padded = torch.nn.functional.pad(codes, (0, -k % 4))
    q = _native.QMatrix(padded, torch.ones(n, 1), None, k, kind, -1)
    assert torch.equal(_native.dequantize(q, torch.empty(n, k)), want)
    back = _native.encode(want.contiguous(), torch.ones(n, 1), None, kind, -1)
    assert torch.equal(back.codes, padded)
    panels = _native.pack(q)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(_native.unpack(panels)[:3], q[:3]))
    assert torch.equal(_ops.embedding(torch.arange(n), panels, k, torch.float32), want)
    eye = torch.eye(k)
    assert torch.equal(_ops.linear(eye, panels, None, k, n, False), want.T)
    # halfway between neighbours, and a little to each side
    finite = want.flatten().sort().values.unique()
    middle = (finite[1:].double() + finite[:-1].double()) / 2
    for shift in (0.0, 1e-4, -1e-4):
        x = (middle * (1 + shift)).float().reshape(1, -1)
        got = _native.encode(x, torch.ones(1, 1), None, kind, -1).codes[:, :x.shape[1]]
        assert torch.equal(got.view(dtype).float(), x.to(dtype).float())
""")
    )


@pytest.mark.parametrize("weights", FLOATS)
@pytest.mark.parametrize("shape", [(1, 5, 3), (3, 130, 70), (40, 384, 65), (9, 50, 16)], ids=str)
@pytest.mark.parametrize("group", [None, 16, 7])
def test_linear_is_the_float_product_of_the_weight_it_shows(weights, shape, group):
    m, k, n = shape
    torch.manual_seed(0)
    linear, x = nn.Linear(k, n), torch.randn(m, k)
    layer = rquant.Linear.from_float(linear, weights, group_size=group)
    weight = layer.dequantize()
    step = linear.weight.abs().amax() / (8 if weights == "float8" else 4) / 2
    assert (weight - linear.weight).abs().max() <= step
    want = x.double() @ weight.double().T + linear.bias.double()
    torch.testing.assert_close(layer(x).double(), want, rtol=1e-5, atol=1e-5)
    half = layer.half()(x.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("weights", ["int2", "int4", "int8", "float8"])
@pytest.mark.parametrize("activations", [None, "int8", "float8"])
def test_all_pairs_of_weights_and_activations(weights, activations):
    torch.manual_seed(0)
    linear, x = nn.Linear(96, 24), torch.randn(6, 96)
    x[2] = 0
    x[4, 3] = torch.nan
    model = nn.Sequential(copy.deepcopy(linear))
    rquant.quantize(model, weights, activations)
    unfrozen = model(x)
    rquant.freeze(model)
    out = model(x)
    assert torch.equal(out.nan_to_num(9e9), unfrozen.nan_to_num(9e9))
    rounded = x
    if activations == "float8":
        scale = x.abs().amax(1, keepdim=True).clamp(1e-30) / 448
        rounded = (x / scale).to(torch.float8_e4m3fn).float() * scale
    elif activations == "int8":
        scale = x.abs().amax(1, keepdim=True).clamp(1e-30) / 127
        rounded = (x / scale).round() * scale
    want = rounded @ model[0].dequantize().T + linear.bias
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert out[4].isnan().all()
    assert out[[0, 1, 2, 3, 5]].isfinite().all()
    x = torch.randn(2, 96, requires_grad=True)
    model(x).sum().backward()
    torch.testing.assert_close(x.grad, model[0].dequantize().sum(0).expand(2, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", FLOATS)
def test_save_load_and_state(weights, tmp_path):
    torch.manual_seed(0)

    def make():
        return nn.Sequential(nn.Embedding(11, 20), nn.Linear(20, 7))

    model, ids = make(), torch.arange(6)
    report = rquant.quantize(model, weights, include="*")
    rquant.freeze(model)
    rows = [row for row in report.rows if row.scheme]
    assert all(weights.removeprefix("q")[:6] in row.scheme for row in rows)
    rquant.save(model, tmp_path / "m.safetensors")
    with torch.device("meta"):
        back = make()
    back = rquant.load(tmp_path / "m.safetensors", back)
    assert torch.equal(back(ids), model(ids))
    state = model.state_dict()
    assert state["1.weight_packed"].dtype == torch.uint8
    assert state["1.weight_scale"].shape == (7, 1)
    other = make()
    rquant.quantize(other, weights, include="*")
    other.load_state_dict(state)
    assert torch.equal(other(ids), model(ids))
    state["1.weight_packed"][2, 3] = 0x7F  # a NaN of both types
    with pytest.raises(RuntimeError, match=r"1.weight_packed: expected finite numbers, got nan at \[2, 3\]"):
        other.load_state_dict(state)


@pytest.mark.parametrize("weights", FLOATS)
def test_rows_of_zeros_and_denormals(weights):
    x = torch.zeros(4, 9)
    x[1] = 1e-42
    x[2, 0] = 3e38
    q = rquant.quantize_tensor(x, weights)
    assert torch.equal(q.dequantize()[0], x[0])
    assert q.dequantize().isfinite().all()
    assert (q.scale > 0).all()


def test_compiled_and_traced():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(24, 8)), torch.randn(3, 24)
    rquant.quantize(model, "float8", "float8")
    rquant.freeze(model)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), model(x))
        assert torch.equal(torch.jit.trace(model, (x,))(x), model(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"symmetric": False}, "symmetric: .*qfloat8_e4m3fn, got False"),
        ({"range": "mse"}, "optimizer: .*qfloat8_e4m3fn, got 'mse'"),
        ({"range": "hqq"}, "optimizer: .*symmetric=False for 'hqq'"),
    ],
)
def test_what_float8_has_not(arguments, message):
    with pytest.raises(ValueError, match=message):
        rquant.quantize_tensor(torch.ones(2, 4), "float8", **arguments)


def test_integer_products_of_float8_are_refused():
    q = rquant.quantize_tensor(torch.randn(4, 8), "float8").matrix
    panels = _native.pack(q)
    with pytest.raises(ValueError, match="float8"):
        _native.gemm_i32(torch.ones(2, 8, dtype=torch.int8), panels, 4)
    with pytest.raises(ValueError, match="float8"):
        _native.linear(torch.ones(2, 8), panels, None, torch.empty(2, 4), 2, 8, 4, True)
