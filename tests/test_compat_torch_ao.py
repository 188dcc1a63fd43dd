"""`quantize_dynamic` beside torch's own: the same arguments, the same choice of layers, no more error."""

import warnings

import pytest
import torch
from torch import nn

import rquant
from rquant.compat.torch_ao import quantize_dynamic

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ao = pytest.importorskip("torch.ao.quantization")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:torch.quantize_per_tensor:UserWarning"
)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64))
        self.conv = nn.Conv1d(1, 1, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.conv(self.encoder(x).unsqueeze(1)).squeeze(1))


def chosen(model):
    """Names of the quantized layers, torch's or ours."""
    return {
        name.removesuffix("._packed_params")
        for name, module in model.named_modules()
        if isinstance(module, rquant.nn.PackedWeight)
        or (type(module).__module__.startswith("torch.ao.nn") and hasattr(module, "_packed_params"))
    }


QCONFIG, PER_CHANNEL = ao.default_dynamic_qconfig, ao.per_channel_dynamic_qconfig
SPECS = {
    "default": None,
    "type": {nn.Linear},
    "types": {nn.Linear, nn.LSTM},
    "name": {"head"},
    "block": {"encoder"},
    "both": {"head", nn.GELU},
    "qconfigs": {"encoder": QCONFIG, "encoder.2": None},
    "per channel": {nn.Linear: PER_CHANNEL, "encoder": None, "encoder.0": PER_CHANNEL},
    "root": {"": QCONFIG, "head": None},
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_chooses_what_torch_chooses_with_no_more_error(spec):
    model, x = Model().eval(), torch.randn(64, 64)
    theirs, ours = ao.quantize_dynamic(model, spec), quantize_dynamic(model, spec)
    assert chosen(ours) == chosen(theirs)
    assert not chosen(model)
    assert all(layer.frozen for layer in ours.modules() if isinstance(layer, rquant.Linear))
    with torch.no_grad():
        want = model(x)
        error_of_theirs, error = ((other(x) - want).norm() for other in (theirs, ours))
    assert 0 < error <= error_of_theirs
    assert nn.functional.cosine_similarity(ours(x).flatten(), want.flatten(), 0) > 0.999


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.gru = nn.LSTM(32, 48, 2, bidirectional=True), nn.GRU(96, 16)
        self.cell, self.out = nn.LSTMCell(16, 8), nn.Linear(8, 4)

    def forward(self, x):
        x, _ = self.lstm(x)
        x, _ = self.gru(x)
        return self.out(self.cell(x[-1])[0])


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        (None, {"lstm", "gru", "cell", "out"}),
        ({nn.LSTM}, {"lstm"}),
        ({nn.LSTM: QCONFIG, "gru": QCONFIG}, {"lstm", "gru"}),
    ],
    ids=["default", "type", "both"],
)
def test_recurrent_layers(spec, parts):
    model, x = Recurrent().eval(), torch.randn(9, 64, 32)
    theirs, ours = ao.quantize_dynamic(model, spec), quantize_dynamic(model, spec)
    assert {name.partition(".")[0] for name in chosen(ours)} == parts
    with torch.no_grad():
        want = model(x)
        error_of_theirs, error = ((other(x) - want).norm() for other in (theirs, ours))
    assert 0 < error <= error_of_theirs


def test_attribute_qconfig_of_a_module_is_stronger():
    model = Model()
    model.encoder[0].qconfig = model.encoder[2].qconfig = None
    assert chosen(quantize_dynamic(model)) == chosen(ao.quantize_dynamic(model)) == {"head"}


def test_in_place_and_eval():
    model = Model().train()
    copied = quantize_dynamic(model)
    assert model.training
    assert not copied.training
    assert quantize_dynamic(model, inplace=True) is model
    assert isinstance(model.head, rquant.Linear)
    assert not model.training
    layer = nn.Linear(64, 8)
    assert type(quantize_dynamic(layer)) is rquant.Linear  # torch leaves a root as it is
    assert type(layer) is nn.Linear


def test_a_model_with_nothing_to_quantize_comes_back():
    model = nn.Sequential(nn.ReLU(), nn.Embedding(4, 4))
    assert chosen(quantize_dynamic(model)) == set()
    assert chosen(quantize_dynamic(Model(), set())) == set()


@pytest.mark.parametrize(
    ("dtype", "layer"),
    [
        (torch.quint8, nn.Embedding(500, 64)),
        (torch.quint8, nn.EmbeddingBag(500, 64, mode="sum", include_last_offset=True)),
        (torch.quint4x2, nn.EmbeddingBag(500, 64, mode="sum", include_last_offset=True)),
    ],
)
def test_embeddings(dtype, layer):
    model, ids = nn.ModuleDict({"embed": layer, "other": nn.Linear(4, 4)}), torch.arange(500)
    args = (ids, torch.arange(501)) if isinstance(layer, nn.EmbeddingBag) else (ids,)
    theirs, ours = ao.quantize_dynamic(model, dtype=dtype), quantize_dynamic(model, dtype=dtype)
    assert chosen(ours) == {"embed"}
    want = layer(*args).detach()
    error_of_theirs, error = ((other.embed(*args) - want).norm() for other in (theirs, ours))
    assert 0 < error <= 1.03 * error_of_theirs  # ours has integer zero points, so that 0.0 comes back exactly


def test_float16_weights():
    model, x = Model().eval(), torch.randn(8, 64)
    theirs, ours = (
        call(model, {nn.Linear}, torch.float16) for call in (ao.quantize_dynamic, quantize_dynamic)
    )
    assert str(ours.head.scheme) == "qfloat16"
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-2, atol=1e-3)


def test_a_tied_weight_stays_shared():
    model = nn.ModuleDict({"embed": nn.Embedding(40, 64), "head": nn.Linear(64, 40, bias=False)})
    model.head.weight = model.embed.weight
    ours = quantize_dynamic(model, {nn.Linear})
    assert ours.embed.held["_panels"] is ours.head.held["_panels"]


def test_a_named_type_that_stays_float_is_told():
    model = nn.Sequential(nn.Linear(4, 4), nn.Bilinear(4, 4, 4))
    with pytest.warns(UserWarning, match=r"left float: 1 \(Bilinear: no quantized form of weight"):
        assert chosen(quantize_dynamic(model, {nn.Linear, nn.Bilinear})) == {"0"}


def test_a_type_that_torch_has_no_form_of_may_be_named():
    assert chosen(quantize_dynamic(Model(), {nn.Conv1d})) == {"conv"}


def test_a_type_that_torch_leaves_float_may_be_named():
    model = quantize_dynamic(nn.ModuleDict({"a": nn.MultiheadAttention(8, 2)}), {nn.MultiheadAttention})
    assert "a.q_proj" in chosen(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"qconfig_spec": {"lm_head"}}, "qconfig_spec: .*'lm_head' is none of this model's"),
        ({"qconfig_spec": nn.Linear}, "qconfig_spec: expected a set"),
        ({"qconfig_spec": {3}}, "qconfig_spec: expected module types and names, got 3"),
        ({"qconfig_spec": {nn.Linear: "int8"}}, "qconfig_spec.*expected a QConfig or None, got 'int8'"),
        (
            {"qconfig_spec": {"head": ao.float16_static_qconfig._replace(weight=lambda: torch.zeros(1))}},
            r"weight\(\).dtype: .*torch.float32",
        ),
        ({"dtype": torch.int32}, "dtype: expected one of torch.qint8, .*got torch.int32"),
        ({"mapping": {nn.Linear: nn.Linear}}, "mapping: expected None"),
    ],
)
def test_wrong_arguments(arguments, message):
    model = Model()
    with pytest.raises(ValueError, match=message):
        quantize_dynamic(model, inplace=True, **arguments)
    assert not chosen(model)
