"""rquant.Linear and Embedding against their definitions in float64, in every arithmetic and type."""

import math

import pytest
import torch
from torch import nn

import rquant
from rquant import _native, _ops
from rquant._backends import reference

SCHEMES = [
    {"weights": "int8"},
    {"weights": "int8", "symmetric": False},
    {"weights": "int8", "group_size": 32},
    {"weights": "int4"},
    {"weights": "int4", "symmetric": True, "group_size": 7},
    {"weights": "int4", "group_size": -1},
    {"weights": "int2"},
    {"weights": "int2", "symmetric": True, "group_size": 1},
    {"weights": "int2", "group_size": 1000},
]
SHAPES = [(1, 1, 1), (2, 3, 10), (5, 130, 37), (17, 64, 64), (1, 257, 1000), (130, 33, 65)]


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def float_layer(k, n, bias=True):
    layer = nn.Linear(k, n, bias)
    layer.weight.data = seeded(n, k) / math.sqrt(k)
    if bias:
        layer.bias.data = seeded(n, seed=1)
    return layer


def bound(x, weight, bias, share=1e-5):
    """`share` of sum |x||w| + |b| for each element."""
    return share * (x.abs() @ weight.abs().T + (0 if bias is None else bias.abs()))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_both_arithmetics_keep_their_definition(scheme, m, k, n):
    linear, x = float_layer(k, n), seeded(m, k, seed=2)
    bias = linear.bias.detach().double()
    layer = rquant.Linear.from_float(linear, **scheme)
    weight = layer.weight.dequantize().double()
    y = layer(x).double()
    assert ((y - (x.double() @ weight.T + bias)).abs() <= bound(x.double(), weight, bias)).all()

    layer = rquant.Linear.from_float(linear, activations="int8", **scheme)
    codes, scale = _ops.quantize_rows(x)
    rows = codes.double() * scale.double()[:, None]
    q = layer.canonical()
    exact = reference.linear_canonical(x.double(), q, linear.bias.detach(), True)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact, rows @ weight.T + bias, rtol=1e-6, atol=1e-6)
    assert ((layer(x).double() - exact).abs() <= bound(rows, weight, bias)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activations", [None, "int8"])
def test_narrow_inputs_are_read_as_they_are(dtype, activations):
    layer = rquant.Linear.from_float(float_layer(130, 37), "int4", activations)
    x = seeded(5, 130).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    exact = layer(x.float()).to(dtype)
    step = exact.float().abs() * torch.finfo(dtype).eps + 1e-5
    assert ((y.float() - exact.float()).abs() <= step).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_narrow_layer_quantizes_its_own_weight(dtype):
    layer = rquant.Linear.from_float(float_layer(64, 16).to(dtype), "int8")
    assert layer.weight.dtype == layer.bias.dtype == dtype
    assert layer(seeded(2, 64).to(dtype)).dtype == dtype


@pytest.mark.parametrize("activations", [None, "int8"])
def test_any_shape_and_stride(activations):
    layer = rquant.Linear.from_float(float_layer(24, 10), "int4", activations)
    x = seeded(4, 6, 24)
    y = layer(x)
    assert y.shape == (4, 6, 10)
    torch.testing.assert_close(layer(x[1, 2]), y[1, 2])
    assert torch.equal(layer(x.transpose(0, 1)), y.transpose(0, 1))
    assert torch.equal(layer(torch.cat([x, x], -1)[..., :24]), y)
    assert layer(x[:0]).shape == (0, 6, 10)
    torch.testing.assert_close(layer(x[:, :, None].expand(4, 6, 3, 24))[:, :, 1], y)


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
@pytest.mark.parametrize("m", [1, 4, 33])
def test_a_row_with_nan_or_infinity_is_a_row_of_nan_and_leaves_the_others_alone(activations, name, m):
    layer = rquant.Linear.from_float(float_layer(70, 9), name, activations)
    x = seeded(m, 70)
    clean = layer(x)
    for value in (torch.nan, torch.inf, -torch.inf):
        for row in {0, m // 2, m - 1}:
            broken = x.clone()
            broken[row, 13] = value
            y = layer(broken)
            assert y[row].isnan().all()
            keep = torch.arange(m) != row
            assert torch.equal(y[keep], clean[keep])


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_zero_and_huge_rows(name):
    layer = rquant.Linear.from_float(float_layer(32, 8, bias=False), name, "int8")
    x = torch.zeros(3, 32)
    x[1] = 1e30
    x[2] = 1e-42
    y = layer(x)
    assert (y[0] == 0).all()
    assert y.isfinite().all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("activations", [None, "int8"])
def test_unfrozen_is_frozen_bit_for_bit(scheme, activations):
    model, x = nn.Sequential(float_layer(130, 37)), seeded(5, 130)
    rquant.quantize(model, activations=activations, **scheme)
    with torch.no_grad():
        evaluated = model(x)
    trained = model(x)
    assert trained.requires_grad
    rquant.freeze(model)
    frozen = model(x)
    assert torch.equal(evaluated, trained)
    assert torch.equal(evaluated, frozen)


@pytest.mark.parametrize("activations", [None, "int8"])
def test_gradients_pass_straight_through(activations):
    """As if the layer were a float one with the rounded weight and input."""
    model, x = nn.Sequential(float_layer(24, 6)), seeded(3, 5, 24).requires_grad_()
    rquant.quantize(model, "int4", activations, group_size=8)
    layer, upstream = model[0], seeded(3, 5, 6, seed=3)
    model(x).backward(upstream)
    rounded = layer.dequantize().detach().requires_grad_()
    seen = x.detach()
    if activations:
        codes, scale = _ops.quantize_rows(seen.reshape(-1, 24))
        seen = (codes * scale[:, None]).reshape(x.shape)
    seen.requires_grad_()
    nn.functional.linear(seen, rounded, layer.bias.detach()).backward(upstream)
    torch.testing.assert_close(x.grad, seen.grad)
    inside = _ops.inside_range(layer.weight, 4, 8, False, "minmax")
    torch.testing.assert_close(layer.weight.grad, rounded.grad * inside)
    torch.testing.assert_close(layer.bias.grad, upstream.sum((0, 1)))


def test_clipped_elements_get_no_gradient():
    """A scale rounded down to float16 leaves some group's largest or smallest element outside."""
    weight = seeded(2000, 8) + 0.5
    model = nn.Sequential(float_layer(8, 2000))
    model[0].weight.data = weight
    rquant.quantize(model, "int8", symmetric=False, group_size=8)
    q = _native.quantize(weight, 8, 8, False)
    steps = torch.round(weight / q.scale.float()) + (q.zero_point.float() - 128)
    clipped = (steps > 127) | (steps < -128)
    assert 0 < clipped.sum() < 500
    model(torch.ones(1, 8)).sum().backward()
    assert torch.equal(model[0].weight.grad, (~clipped).float())


def test_a_frozen_layer_passes_gradients_to_its_input_and_bias():
    layer, x = rquant.Linear.from_float(float_layer(24, 6), "int4"), seeded(3, 24).requires_grad_()
    upstream = seeded(3, 6, seed=3)
    layer(x).backward(upstream)
    torch.testing.assert_close(x.grad, upstream @ layer.weight.dequantize())
    torch.testing.assert_close(layer.bias.grad, upstream.sum(0))
    assert [name for name, p in layer.named_parameters() if p.numel()] == ["bias"]


def test_training_lowers_the_loss():
    model, x = nn.Sequential(float_layer(16, 8), nn.ReLU(), float_layer(8, 1)), seeded(64, 16)
    target = x[:, :1] - x[:, 1:2]
    rquant.quantize(model, "int4", "int8", group_size=8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_conv1d_of_transformers():
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    conv, x = pytorch_utils.Conv1D(10, 24), seeded(3, 24)
    layer = rquant.Linear.from_float(conv, "int8")
    assert (layer.out_features, layer.in_features) == (10, 24)
    assert layer.weight.shape == (10, 24)
    assert (layer(x) - conv(x)).abs().max() < 0.01


def test_from_float_leaves_its_source_alone():
    linear = float_layer(8, 4)
    before = linear.weight.clone()
    layer = rquant.Linear.from_float(linear)
    assert torch.equal(linear.weight, before)
    layer.bias.data.zero_()
    assert linear.bias.abs().min() > 0


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding(name, dtype):
    embedding = nn.Embedding(50, 33, padding_idx=0, dtype=dtype)
    layer = rquant.Embedding.from_float(embedding, name)
    ids = torch.tensor([[0, 49, 7], [7, 1, 1]])
    assert torch.equal(layer(ids), layer.weight.dequantize()[ids])
    assert torch.equal(layer(ids.int().T), layer(ids).transpose(0, 1))
    assert layer(ids).dtype == dtype
    assert (layer(torch.tensor(0)) == 0).all()
    assert layer(ids[:0]).shape == (0, 3, 33)
    with pytest.raises(ValueError, match="50"):
        layer(torch.tensor([50]))


def test_unfrozen_embedding_trains():
    model = nn.Sequential(nn.Embedding(10, 8))
    rquant.quantize(model, "int4", include="0")
    ids = torch.tensor([1, 1, 3])
    y = model(ids)
    y.sum().backward()
    assert model[0].weight.grad.sum(1).nonzero().flatten().tolist() == [1, 3]
    rquant.freeze(model)
    assert torch.equal(model(ids), y)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rquant.Linear.from_float(nn.Conv2d(1, 1, 1)), TypeError, "linear: .*Conv2d"),
        (lambda: rquant.Linear.from_float(nn.Linear(2, 2), "int5"), ValueError, "weights: .*'int5'"),
        (lambda: rquant.Linear.from_float(nn.Linear(2, 2), "float4"), ValueError, "weights: .*'float4'"),
        (
            lambda: rquant.Linear.from_float(nn.Linear(2, 2), "float8", symmetric=False),
            ValueError,
            "symmetric: .*qfloat8_e4m3fn",
        ),
        (
            lambda: rquant.Linear.from_float(nn.Linear(2, 2), "int8", "int4"),
            ValueError,
            "activations: .*'int4'",
        ),
        (lambda: rquant.Embedding.from_float(nn.Embedding(2, 2, max_norm=1.0)), ValueError, "max_norm"),
        (lambda: rquant.Embedding.from_float(nn.Linear(2, 2)), TypeError, "embedding: .*Linear"),
    ],
)
def test_wrong_modules_and_types(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_wrong_inputs():
    layer = rquant.Linear.from_float(float_layer(8, 4))
    with pytest.raises(ValueError, match=r"x: .*8, got shape \(2, 9\)"):
        layer(torch.zeros(2, 9))
    with pytest.raises(ValueError, match=r"x: .*float64"):
        layer(torch.zeros(2, 8, dtype=torch.float64))
    layer.bias = nn.Parameter(torch.zeros(5))
    with pytest.raises(ValueError, match="bias: expected 4 elements, got 5"):
        layer(torch.zeros(2, 8))


def test_nan_weights_are_named():
    linear = float_layer(8, 4)
    linear.weight.data[3, 5] = torch.nan
    with pytest.raises(ValueError, match=r"weight: .*\[3, 5\]"):
        rquant.Linear.from_float(linear)
