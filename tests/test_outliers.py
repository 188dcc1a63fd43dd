"""LLM.int8(): columns of the input in float, found by a threshold or fixed, in every state of a layer."""

import copy
import json
import math

import pytest
import torch
from torch import nn

import rquant
from rquant import _native, _ops
from rquant._backends import reference

COLUMNS = [3, 17, 40]


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def float_layer(k=70, n=20, bias=True):
    linear = nn.Linear(k, n, bias)
    linear.weight.data = seeded(n, k) / math.sqrt(k)
    return linear


def with_outliers(m=5, k=70):
    """None but in COLUMNS, and there in one row each."""
    x = seeded(m, k, seed=2).clamp(-3, 3)
    for i, column in enumerate(COLUMNS):
        x[i % m, column] = 60.0 * (-1) ** i
    return x


def definition(layer, x, columns):
    """Float64: rows quantized without the columns, times the weight; the columns times theirs."""
    weight, rows = layer.dequantize().detach().double(), x.reshape(-1, x.shape[-1])
    rest = rows.clone()
    rest[:, columns] = 0
    codes, scale = reference.quantize_rows(rest)
    y = codes.double() * scale.double()[:, None] @ weight.T + rows[:, columns].double() @ weight[:, columns].T
    return y + (0 if layer.bias is None else layer.bias.detach().double())


SCHEMES = [{}, {"symmetric": False}, {"weights": "int4", "group_size": 7}, {"weights": "int2"}]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("outliers", [6.0, COLUMNS], ids=["threshold", "columns"])
@pytest.mark.parametrize("m", [1, 5])
def test_it_keeps_its_definition(scheme, outliers, m):
    linear, x = float_layer(), with_outliers(m)
    layer = rquant.Linear.from_float(linear, activations="int8", outliers=outliers, **scheme)
    want = definition(layer, x, COLUMNS)
    torch.testing.assert_close(layer(x).double(), want, rtol=1e-5, atol=1e-5)
    if outliers == COLUMNS:  # their weights are as they were
        assert torch.equal(layer.outlier_weight, linear.weight[:, COLUMNS])
        assert torch.equal(layer.weight[:, COLUMNS], linear.weight[:, COLUMNS])
    y = layer(x.reshape(1, m, 70).bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(
        y[0].double(), definition(layer, x.bfloat16().float(), COLUMNS), rtol=1e-2, atol=2e-2
    )


def test_without_outliers_it_is_the_plain_layer():
    linear, x = float_layer(), seeded(5, 70).clamp(-3, 3)
    plain = rquant.Linear.from_float(linear, activations="int8")
    for outliers in (6.0, []):
        layer = rquant.Linear.from_float(linear, activations="int8", outliers=outliers)
        assert torch.equal(layer(x), plain(x))


def test_its_error_is_ten_times_below_plain_int8():
    """Outlier features of 60 times the others' size in 0.5 % of the columns."""
    k = n = 1024
    linear, x = nn.Linear(k, n), seeded(64, k)
    columns = torch.randperm(k, generator=torch.Generator().manual_seed(1))[:5].tolist()
    x[:, columns] *= 60
    want = linear(x)

    def error(outliers):
        layer = rquant.Linear.from_float(linear, activations="int8", outliers=outliers)
        return ((layer(x) - want).norm() / want.norm()).item()

    plain = error(None)
    assert error(6.0) < plain / 10
    assert error(columns) < plain / 20


@pytest.mark.parametrize("outliers", [6.0, COLUMNS], ids=["threshold", "columns"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", [3, 4])
def test_a_bad_row_is_nan_and_leaves_the_others_alone(outliers, bad, column):
    layer, x = rquant.Linear.from_float(float_layer(), activations="int8", outliers=outliers), with_outliers()
    clean, keep = layer(x), torch.arange(5) != 4
    x[4, column] = bad
    x[4, 50] = 100  # chooses no column: its row is no number
    y = layer(x)
    assert y[4].isnan().all()
    assert torch.equal(y[keep], clean[keep])


@pytest.mark.parametrize("scheme", [(8, -1, True, "minmax"), (4, 16, False, "minmax")], ids=str)
@pytest.mark.parametrize("chosen", [(6.0, None), (None, COLUMNS)], ids=str)
def test_the_reference_is_the_oracle(scheme, chosen):
    w, x, bias = seeded(20, 70), with_outliers(), seeded(20, seed=1)
    q = _native.quantize(w, *scheme)
    panels, kept = _native.pack(q), None if chosen[1] is None else w[:, COLUMNS].contiguous()
    x[1, 7] = torch.inf
    want = reference.linear_outliers_canonical(x, q, bias, *chosen, kept)
    assert want[1].isnan().all()
    close = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}
    torch.testing.assert_close(_ops.linear_outliers(x, panels, bias, 70, 20, *chosen, kept), want, **close)
    got = _ops.linear_outliers_canonical(x, *q[:3], bias, *q[3:], *chosen, kept)
    torch.testing.assert_close(got, want, **close)
    for unfrozen in (_ops.linear_outliers_unfrozen, reference.linear_outliers_unfrozen):
        torch.testing.assert_close(unfrozen(x, w, bias, *scheme, *chosen), want, **close)


def network(outliers=6.0, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(70, 33), nn.ReLU(), nn.Linear(33, 20))
    rquant.quantize(model, "int8", "int8", outliers=outliers, **options)
    return model


def fixed(freeze=True):
    model = network()
    with rquant.record_outliers(model):
        model(with_outliers())
    if freeze:
        rquant.freeze(model)
    return model


def test_recorded_columns_are_those_that_reached_the_threshold():
    model = network()
    with rquant.record_outliers(model):
        for row in with_outliers():
            model(row)
    assert model[0].outliers == tuple(COLUMNS)
    assert model[2].outliers is not None
    x = with_outliers()
    alone, dynamic = fixed(), network()
    rquant.freeze(dynamic)
    # a row's output no longer depends on the others
    torch.testing.assert_close(alone[0](x)[4], alone[0](x[4:])[0], rtol=0, atol=0)
    assert not torch.equal(dynamic[0](x)[4], dynamic[0](x[4:])[0])


def test_nothing_is_fixed_after_an_exception_or_without_a_call():
    model = network()
    with pytest.raises(ValueError, match="70"), rquant.record_outliers(model):
        model(with_outliers()[:, 1:])
    with rquant.record_outliers(model):
        pass
    assert model[0].outliers == 6.0
    assert not model[0]._forward_pre_hooks
    with pytest.raises(ValueError, match=r"outliers=6\.0"), rquant.record_outliers(network(None)):
        pass


@pytest.mark.parametrize("make", [network, lambda freeze=False: fixed(freeze)], ids=["threshold", "columns"])
def test_unfrozen_is_frozen_bit_for_bit(make):
    model, x = make(), with_outliers()
    with torch.no_grad():
        evaluated = model(x)
    trained = model(x)
    assert trained.requires_grad
    rquant.freeze(model)
    assert torch.equal(evaluated, trained)
    assert torch.equal(evaluated, model(x))


@pytest.mark.parametrize("outliers", [6.0, COLUMNS], ids=["threshold", "columns"])
def test_gradients_pass_straight_through(outliers):
    model, x, upstream = nn.Sequential(float_layer()), with_outliers().requires_grad_(), seeded(5, 20, seed=3)
    rquant.quantize(model, "int4", "int8", group_size=16, outliers=6.0)
    layer = model[0]
    if outliers != 6.0:
        layer.fix_outliers(outliers)
    model(x).backward(upstream)
    rounded = layer.dequantize().detach()
    torch.testing.assert_close(x.grad, upstream @ rounded)
    seen = x.detach().clone()
    seen[:, COLUMNS] = 0
    codes, scale = reference.quantize_rows(seen)
    seen = codes * scale[:, None]
    seen[:, COLUMNS] = x.detach()[:, COLUMNS]
    inside = _ops.inside_range(layer.weight, 4, 16, False, "minmax")
    if outliers != 6.0:
        inside[:, COLUMNS] = True
    torch.testing.assert_close(layer.weight.grad, upstream.T @ seen * inside)
    torch.testing.assert_close(layer.bias.grad, upstream.sum(0))
    x.grad = None
    rquant.freeze(model)
    model(x).backward(upstream)
    torch.testing.assert_close(x.grad, upstream @ rounded)


@pytest.mark.parametrize("make", [network, fixed], ids=["threshold", "columns"])
def test_it_comes_back_from_file_map_copy_and_state_dict(make, tmp_path):
    model, x = make(), with_outliers()
    rquant.freeze(model)
    y = model(x)
    with torch.device("meta"):
        skeleton = nn.Sequential(nn.Linear(70, 33), nn.ReLU(), nn.Linear(33, 20))
    rquant.save(model, tmp_path / "m.safetensors")
    loaded = rquant.load(tmp_path / "m.safetensors", copy.deepcopy(skeleton))
    assert loaded[0].outliers == model[0].outliers
    assert torch.equal(loaded(x), y)
    config = json.loads(json.dumps(rquant.quantization_map(model)))
    back = rquant.requantize(skeleton, model.state_dict(), config)
    assert torch.equal(back(x), y)
    assert torch.equal(copy.deepcopy(model)(x), y)
    other = make() if make is network else fixed(freeze=False)
    for layer in (other[0], other[2]):
        layer.weight.data.mul_(2)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), y)


def test_a_missing_or_bad_float_column_is_named():
    model = fixed()
    state, config = model.state_dict(), rquant.quantization_map(model)
    skeleton = nn.Sequential(nn.Linear(70, 33), nn.ReLU(), nn.Linear(33, 20))
    lacking = {key: value for key, value in state.items() if key != "0.outlier_weight"}
    with pytest.raises(ValueError, match=r"0\.outlier_weight: missing"):
        rquant.requantize(copy.deepcopy(skeleton), lacking, config)
    with pytest.raises(RuntimeError, match=r"0\.outlier_weight"):
        fixed(freeze=False).load_state_dict(lacking)
    bad = {key: value.clone() for key, value in state.items()}
    bad["0.outlier_weight"][2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"0.outlier_weight: .*\[2, 1\]"):
        rquant.requantize(copy.deepcopy(skeleton), bad, config)


@pytest.mark.parametrize("make", [network, fixed], ids=["threshold", "columns"])
@pytest.mark.filterwarnings("ignore:.*jit.*")
def test_compile_export_trace(make):
    model, x = make(), with_outliers()
    rquant.freeze(model)
    y = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), y)
        assert torch.equal(torch.jit.trace(model, x)(x), y)
    leaf = x.clone().requires_grad_()
    compiled(leaf).sum().backward()
    want = x.clone().requires_grad_()
    model(want).sum().backward()
    torch.testing.assert_close(leaf.grad, want.grad)
    exported = torch.export.export(model, (x,))
    assert torch.equal(exported.module()(x), y)
    assert "torch.ops.rquant.linear_outliers_differentiable.default" in exported.graph_module.code


@pytest.mark.parametrize("make", [network, fixed], ids=["threshold", "columns"])
@pytest.mark.filterwarnings("ignore:.*jit.*")
def test_programs_and_transforms_have_the_gradient_too(make):
    model, x = make(), with_outliers()
    rquant.freeze(model)

    def gradient(run, at):
        leaf = at.clone().requires_grad_()
        return torch.autograd.grad(run(leaf).square().sum(), leaf)[0]

    want = gradient(model, x)
    exported = torch.export.export(model, (x.clone().requires_grad_(),)).module()
    for program in (exported, torch.jit.trace(model, x)):
        torch.testing.assert_close(gradient(program, x), want)
    grad = torch.func.grad(lambda x: model(x).square().sum())
    torch.testing.assert_close(grad(x), want)
    alone = torch.stack([gradient(model, row) for row in x])  # a threshold looks at what comes together
    torch.testing.assert_close(torch.func.vmap(grad)(x), alone)


def test_compile_of_a_layer_in_training():
    model, x = network(), with_outliers()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(x).sum().backward()
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    for parameter, grad in zip(model.parameters(), got, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_fixing_a_frozen_layer_keeps_what_it_computes():
    layer, x = rquant.Linear.from_float(float_layer(), activations="int8", outliers=6.0), with_outliers()
    y, shown = layer(x), str(layer)
    layer.fix_outliers(COLUMNS)
    torch.testing.assert_close(layer(x), y, rtol=1e-6, atol=1e-6)
    assert "outliers=6.0" in shown
    assert "outliers=3 columns" in str(layer)
    assert layer.half().outlier_weight.dtype == torch.float16


def test_rules_and_conv1d():
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    model = nn.Sequential(pytorch_utils.Conv1D(33, 70), nn.Linear(33, 20))
    rquant.quantize(model, activations="int8", rules=[("0", {"outliers": 4.0}), ("1", {"outliers": None})])
    assert (model[0].outliers, model[1].outliers) == (4.0, None)
    rquant.freeze(model)
    assert model(with_outliers()).isfinite().all()


@pytest.mark.parametrize(
    ("outliers", "activations", "message"),
    [
        (6.0, None, "outliers: expected None without activations=rquant.qint8"),
        (0.0, "int8", "outliers: expected a finite threshold above 0, got 0.0"),
        (math.inf, "int8", "outliers: .*above 0, got inf"),
        (math.nan, "int8", "outliers: .*got nan"),
        (True, "int8", "outliers: .*got True"),
        ("6", "int8", "outliers: .*got '6'"),
        ([1, 70], "int8", r"outliers: expected different columns in \[0, 70\), got 70"),
        ([-1], "int8", r"outliers: .*got -1"),
        ([2, 2], "int8", r"outliers: .*got 2"),
        ([2.5], "int8", r"outliers: .*got 2.5"),
    ],
)
def test_wrong_outliers(outliers, activations, message):
    with pytest.raises(ValueError, match=message):
        rquant.Linear.from_float(float_layer(), activations=activations, outliers=outliers)
    model = nn.Sequential(float_layer())
    with pytest.raises(ValueError, match="outliers"):
        rquant.quantize(model, activations=activations, outliers=outliers)
    assert type(model[0]) is nn.Linear


def test_wrong_inputs():
    layer = rquant.Linear.from_float(float_layer(), activations="int8", outliers=6.0)
    with pytest.raises(ValueError, match=r"x: .*70, got shape \(2, 71\)"):
        layer(torch.zeros(2, 71))
    with pytest.raises(ValueError, match=r"x: .*float64"):
        layer(torch.zeros(2, 70, dtype=torch.float64))


def test_outputs_are_the_same_on_any_number_of_threads(set_num_threads):
    linear, x = nn.Linear(640, 700), seeded(130, 640)
    x[::7, ::50] *= 60
    for outliers in (6.0, list(range(0, 640, 50))):
        layer, seen = rquant.Linear.from_float(linear, activations="int8", outliers=outliers), set()
        for threads in (1, 2, 3):
            set_num_threads(threads)
            seen.add(layer(x).detach().numpy().tobytes())
        assert len(seen) == 1
