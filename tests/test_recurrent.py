"""LSTM, GRU, RNN and their cells compute what torch's do with the rounded weights, whatever their options."""

import copy
import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rquant

STEPS, N, IN, HIDDEN = 5, 3, 6, 8
LAYERS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
CELLS = {"LSTMCell": nn.LSTMCell, "GRUCell": nn.GRUCell, "RNNCell": nn.RNNCell}


def rounded(module, weights="int8", **options):
    """Torch's module with its weights replaced by what quantization makes of them."""
    module = copy.deepcopy(module)
    for name, parameter in module.named_parameters():
        if "weight" in name:
            layer = nn.Linear(parameter.shape[1], parameter.shape[0], bias=False)
            layer.weight = parameter
            rquant_layer = rquant.Linear.from_float(layer, weights, **options)
            parameter.data = rquant_layer.dequantize()
    return module


def flat(result):
    """All tensors of a result."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in flat(part) if part is not None]


def same(got, want, **close):
    assert len(flat(got)) == len(flat(want))
    for a, b in zip(flat(got), flat(want), strict=True):
        torch.testing.assert_close(a, b, **(close or {"rtol": 1e-5, "atol": 1e-5}))


def states(kind, count, n, hidden=HIDDEN, projected=0):
    """h, or h and c, `[count, n, size]`; without n if it is None."""
    shape = (count,) if n is None else (count, n)
    h = torch.randn(*shape, projected or hidden)
    return (h, torch.randn(*shape, hidden)) if kind == "LSTM" else h


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from(list(LAYERS)),
    num_layers=st.integers(1, 2),
    flags=st.fixed_dictionaries({name: st.booleans() for name in ("bias", "batch_first", "bidirectional")}),
    proj_size=st.sampled_from([0, 3]),
    nonlinearity=st.sampled_from(["tanh", "relu"]),
    weights=st.sampled_from(["int8", "int4", "int2"]),
    given_state=st.booleans(),
    form=st.sampled_from(["batched", "unbatched", "packed sorted", "packed"]),
    freeze=st.booleans(),
    seed=st.integers(0, 99),
)
def test_layers_compute_as_torch_does(
    kind, num_layers, flags, proj_size, nonlinearity, weights, given_state, form, freeze, seed
):
    torch.manual_seed(seed)
    own = {"LSTM": {"proj_size": proj_size}, "GRU": {}, "RNN": {"nonlinearity": nonlinearity}}[kind]
    module = LAYERS[kind](IN, HIDDEN, num_layers, dropout=0.5 * (num_layers > 1), **flags, **own).eval()
    n = None if form == "unbatched" else N
    x = torch.randn(STEPS, IN) if n is None else torch.randn(STEPS, N, IN)
    if flags["batch_first"] and n is not None:
        x = x.transpose(0, 1)
    if form.startswith("packed"):
        lengths = torch.tensor([5, 4, 2] if form == "packed sorted" else [2, 5, 4])
        x = pack_padded_sequence(x, lengths, flags["batch_first"], enforce_sorted=form == "packed sorted")
    count = num_layers * (1 + flags["bidirectional"])
    hx = states(kind, count, n, projected=own.get("proj_size", 0)) if given_state else None
    want = rounded(module, weights)(x, hx)
    model = copy.deepcopy(module)
    rquant.quantize(model, weights)
    assert type(model) is getattr(rquant.nn, kind)
    if freeze:
        rquant.freeze(model)
    got = model(x, hx)
    if form.startswith("packed"):
        got, want = ((pad_packed_sequence(out), state) for out, state in (got, want))
    same(got, want)


@pytest.mark.parametrize("weights", ["int8", "int4", "int2"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", [None, N])
@pytest.mark.parametrize("kind", [*CELLS, "relu"])
def test_cells_compute_as_torch_does(kind, n, bias, weights):
    torch.manual_seed(0)
    cell = nn.RNNCell(IN, HIDDEN, bias, "relu") if kind == "relu" else CELLS[kind](IN, HIDDEN, bias)
    kind = type(cell).__name__
    model = getattr(rquant.nn, kind).from_float(cell, weights)
    shape = () if n is None else (n,)
    x, h, c = torch.randn(*shape, IN), torch.randn(*shape, HIDDEN), torch.randn(*shape, HIDDEN)
    float_cell = rounded(cell, weights)
    hx = (h, c) if kind == "LSTMCell" else h
    same(model(x, hx), float_cell(x, hx))
    same(model(x), float_cell(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_int8_activations_are_near(kind):
    torch.manual_seed(0)
    module, x = LAYERS[kind](32, 64, bidirectional=True), torch.randn(20, 4, 32)
    want, _ = module(x)
    for options in ({}, {"outliers": 6.0}):
        model = getattr(rquant.nn, kind).from_float(module, "int8", "int8", **options)
        assert {type(part) for part in model.children()} == {rquant.Linear}
        error = (model(x)[0] - want).norm() / want.norm()
        assert error < 0.03


def test_children_are_named_as_torchs_parameters():
    lstm = nn.LSTM(IN, HIDDEN, 2, bidirectional=True, proj_size=3)
    model = rquant.nn.LSTM.from_float(lstm)
    names = {name for name, _ in model.named_children()}
    assert names == {name.removeprefix("weight_") for name, _ in lstm.named_parameters() if "weight" in name}
    assert torch.equal(model.bias_hh_l1_reverse, lstm.bias_hh_l1_reverse)
    assert (model.weight_hr_l0 - lstm.weight_hr_l0).abs().max() < 0.01
    assert "LSTM(\n  6, 8, proj_size=3, num_layers=2, bidirectional=True" in str(model)
    model.flatten_parameters()
    with pytest.raises(AttributeError, match="weight_ih_l2"):
        _ = model.weight_ih_l2


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, IN)
        self.lstm = nn.LSTM(IN, HIDDEN, 2, dropout=0.5, batch_first=True, bidirectional=True)
        self.cell = nn.GRUCell(2 * HIDDEN, HIDDEN)
        self.out = nn.Linear(HIDDEN, 4)

    def forward(self, ids):
        out, _ = self.lstm(self.embed(ids))
        return self.out(self.cell(out.mean(1), out[:, 0, :HIDDEN]))


IDS = torch.arange(12).reshape(3, 4)


@pytest.mark.parametrize("activations", [None, "int8"])
def test_it_comes_back_from_file_map_copy_pickle_and_state_dict(activations, tmp_path):
    torch.manual_seed(0)
    model = Tagger().eval()
    rquant.quantize(model, "int4", activations, group_size=4)
    with torch.no_grad():
        unfrozen = model(IDS)
    rquant.freeze(model)
    y = model(IDS)
    assert torch.equal(unfrozen, y)
    rquant.save(model, tmp_path / "m.safetensors")
    with torch.device("meta"):
        skeleton = Tagger().eval()
    assert torch.equal(rquant.load(tmp_path / "m.safetensors", copy.deepcopy(skeleton))(IDS), y)
    config = json.loads(json.dumps(rquant.quantization_map(model)))
    assert torch.equal(rquant.requantize(skeleton, model.state_dict(), config)(IDS), y)
    assert torch.equal(copy.deepcopy(model)(IDS), y)
    assert torch.equal(pickle.loads(pickle.dumps(model))(IDS), y)
    other = Tagger().eval()
    rquant.quantize(other, "int4", activations, group_size=4)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(IDS), y)
    assert model.to(torch.float64).lstm.weight_ih_l0.dtype == torch.float64


def test_training_reaches_every_weight_and_dropout_drops():
    torch.manual_seed(0)
    model = Tagger()
    rquant.quantize(model)
    torch.manual_seed(1)
    y = model(IDS)
    assert not torch.equal(y, model(IDS))
    y.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_gradients_are_those_of_the_rounded_module():
    torch.manual_seed(0)
    lstm, x = nn.LSTM(IN, HIDDEN, bidirectional=True), torch.randn(STEPS, N, IN)
    reference, leaf = rounded(lstm), x.clone().requires_grad_()
    reference(leaf)[0].sum().backward()
    for freeze in (False, True):
        model, mine = copy.deepcopy(lstm), x.clone().requires_grad_()
        rquant.quantize(model)
        if freeze:
            rquant.freeze(model)
        model(mine)[0].sum().backward()
        torch.testing.assert_close(mine.grad, leaf.grad)
        torch.testing.assert_close(model.ih_l0.bias.grad, reference.bias_ih_l0.grad)
        if not freeze:
            torch.testing.assert_close(model.hh_l0_reverse.weight.grad, reference.weight_hh_l0_reverse.grad)


@pytest.mark.filterwarnings("ignore")
def test_compile_export_trace():
    torch.manual_seed(0)
    model = Tagger().eval()
    rquant.quantize(model, activations="int8")
    rquant.freeze(model)
    y = model(IDS)
    with torch.no_grad():
        assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(IDS), y)
        assert torch.equal(torch.jit.trace(model, IDS)(IDS), y)
    assert torch.equal(torch.export.export(model, (IDS,)).module()(IDS), y)


def test_selection_and_what_stays_float():
    model = Tagger()
    report = rquant.quantize(model, exclude=["*.hh_*", "cell"])
    assert type(model.lstm) is rquant.nn.LSTM
    assert type(model.lstm.hh_l0) is nn.Linear
    assert type(model.cell) is nn.GRUCell
    assert {row.name for row in report.quantized} == {
        *(f"lstm.ih_l{layer}{side}" for layer in (0, 1) for side in ("", "_reverse")),
        "out",
    }
    model = nn.Sequential(nn.LSTM(IN, HIDDEN))
    nn.utils.parametrizations.weight_norm(model[0], "weight_hh_l0")
    report = rquant.quantize(model, exclude="0.parametrizations")
    assert not report.quantized
    with pytest.raises(ValueError, match="parametrization"):
        rquant.nn.LSTM.from_float(model[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.zeros(5, 3, 7)), r"input: expected a last dimension of 6, got shape \(5, 3, 7\)"),
        (lambda m: m(torch.zeros(6)), r"input: expected 2 or 3 dimensions, got shape \(6,\)"),
        (lambda m: m(torch.zeros(0, 3, 6)), r"input: expected at least one step"),
        (
            lambda m: m(torch.zeros(5, 3, 6), (torch.zeros(1, 2, 8), torch.zeros(1, 3, 8))),
            r"hx: expected shape \(1, 3, 8\), got \(1, 2, 8\)",
        ),
    ],
)
def test_wrong_inputs(call, message):
    with pytest.raises(ValueError, match=message):
        call(rquant.nn.LSTM.from_float(nn.LSTM(IN, HIDDEN)))


def test_wrong_cell_inputs():
    cell = rquant.nn.GRUCell.from_float(nn.GRUCell(IN, HIDDEN))
    with pytest.raises(ValueError, match=r"input: expected shape \[n, 6\] or \[6\], got \(2, 7\)"):
        cell(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"hx: expected shape \(2, 8\), got \(1, 8\)"):
        cell(torch.zeros(2, 6), torch.zeros(1, 8))


def test_wrong_modules():
    with pytest.raises(TypeError, match=r"module: expected nn\.GRU, got LSTM"):
        rquant.nn.GRU.from_float(nn.LSTM(IN, HIDDEN))
    lstm = nn.LSTM(IN, HIDDEN)
    lstm.weight_hh_l0.data[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"hh_l0\.weight: .*\[1, 2\]"):
        rquant.nn.LSTM.from_float(lstm)
