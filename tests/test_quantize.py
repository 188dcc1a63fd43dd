"""Whole models: what is chosen, what the report says, what is refused and leaves the model as it was."""

import json

import pytest
import torch
from torch import nn

import rquant

MASKS = 12 * (1024 * 1024 + 4)  # what older transformers keep as buffers, and older files count


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict({"q": nn.Linear(64, 64), "o": nn.Linear(64, 64, bias=False)})
        self.norm = nn.LayerNorm(64)

    def forward(self, x):
        return self.norm(self.attention["o"](self.attention["q"](x)) + x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 64)
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(64, 20)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


LINEAR = [
    "layers.0.attention.q",
    "layers.0.attention.o",
    "layers.1.attention.q",
    "layers.1.attention.o",
    "head",
]


def chosen(model):
    return [name for name, module in model.named_modules() if isinstance(module, rquant.nn.PackedWeight)]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, LINEAR),
        ({"include": "*"}, ["embed", *LINEAR]),
        ({"include": ["embed", "head"]}, ["embed", "head"]),
        ({"include": "layers.*.attention.q"}, [LINEAR[0], LINEAR[2]]),
        ({"include": "layers.1"}, LINEAR[2:4]),
        ({"exclude": "head"}, LINEAR[:4]),
        ({"exclude": ["layers.0", "*.o"]}, ["layers.1.attention.q", "head"]),
        ({"include": "layers*", "exclude": "*.q"}, [LINEAR[1], LINEAR[3]]),
    ],
)
def test_include_and_exclude(arguments, names):
    model = Model()
    rquant.quantize(model, **arguments)
    assert chosen(model) == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": "layer.*"}, "include: .*'layer.\\*' matches nothing that can be quantized"),
        ({"include": ["head", "*norm*"]}, "include: .*norm.* matches nothing that can be quantized"),
        ({"exclude": "lm_head"}, "exclude: .*'lm_head' matches nothing"),
        ({"weights": "int3"}, "weights: .*'int3'"),
        ({"activations": "int4"}, "activations: .*qint8, .*, got 'int4'"),
        ({"group_size": 0}, "group_size: .*got 0"),
        ({"rules": {"head": "int8"}}, "rules: "),
        ({"optimizer": "hqq"}, "optimizer: .*'hqq'"),
    ],
)
def test_wrong_arguments_leave_the_model_alone(arguments, message):
    model = Model()
    with pytest.raises(ValueError, match=message):
        rquant.quantize(model, **arguments)
    assert chosen(model) == []


def test_nan_in_the_last_layer_leaves_the_model_alone():
    model = Model()
    model.head.weight.data[3, 5] = torch.inf
    with pytest.raises(ValueError, match=r"head.weight: .*\[3, 5\]"):
        rquant.quantize(model)
    assert chosen(model) == []


def test_nan_that_training_made_is_named_by_freeze():
    model = Model()
    rquant.quantize(model)
    model.layers[1].attention["q"].weight.data[0, 7] = torch.nan
    with pytest.raises(ValueError, match=r"layers.1.attention.q.weight: .*\[0, 7\]"):
        rquant.freeze(model)


def test_a_single_layer_stays_the_object_and_changes_its_class():
    layer, x, seen = nn.Linear(64, 8), torch.randn(3, 64), []
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    want = rquant.Linear.from_float(layer, "int4")(x)
    weight = layer.weight
    report = rquant.quantize(layer, "int4")
    assert type(layer) is rquant.Linear
    assert layer.weight is weight
    assert [(row.name, row.scheme) for row in report.rows] == [("", "qint4 affine group 64")]
    assert torch.equal(layer(x), want)
    rquant.freeze(layer)
    assert torch.equal(layer(x), want)
    handle.remove()
    layer(x)
    assert seen == [1, 1]


def test_a_single_layer_with_nan_is_named_and_left_alone():
    layer = nn.Linear(4, 4)
    layer.weight.data[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"^weight: .*\[1, 2\]"):
        rquant.quantize(layer)
    assert type(layer) is nn.Linear


def test_twice_is_once():
    model, ids = Model(), torch.arange(20)
    rquant.quantize(model, exclude="head")
    report = rquant.quantize(model, "int4")
    assert model.layers[0].attention["q"].scheme.qtype is rquant.qint8
    assert model.head.scheme.qtype is rquant.qint4
    assert [row.note for row in report.rows if "attention.q" in row.name] == ["quantized before"] * 2
    rquant.freeze(model)
    y = model(ids)
    rquant.freeze(model)
    assert torch.equal(model(ids), y)


def test_the_report_counts_what_is_stored():
    model = Model()
    before = sum(p.nbytes for p in model.parameters())
    report = rquant.quantize(model, "int4")
    rquant.freeze(model)
    after = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert (report.bytes_before, report.bytes_after) == (before, after)
    assert [row.name for row in report.quantized] == LINEAR
    reasons = {row.name: row.note for row in report.floating}
    assert reasons["embed"] == "Embedding: by include, or when tied"
    assert reasons["layers.0.norm"] == "no quantized form"
    assert json.loads(json.dumps(report.to_dict()))["bytes_after"] == after
    text = str(report)
    assert "layers.*.attention.q x2" in text
    assert f"{after:,}" in text
    assert len(text.splitlines()) == 1 + 5 + 1 + 4


def test_the_report_says_how_much_stays_float_and_why():
    model = Model()
    model.table = nn.Module()
    model.table.cube = nn.Parameter(torch.zeros(2, 3, 4))
    report = rquant.quantize(model, "int4", "int8", exclude="head")
    rquant.freeze(model)
    floats = sum(p.nbytes for p in model.parameters())
    assert report.bytes_float == floats
    assert report.float_because == {
        "excluded by 'head'": 65 * 20 * 4,
        "Embedding: by include, or when tied": 64 * 20 * 4,
        "float parameters; int8 for the layer after it, once calibrated": 4 * 64 * 4,
        "biases of quantized layers": 2 * 64 * 4,
        "no quantized form of cube [2, 3, 4]; see rquant.register_module": 96,
    }
    text = str(report)
    assert f"{100 * floats / report.bytes_before:.1f} % of the bytes before stay float:" in text
    assert "6.6 %  Embedding: by include, or when tied" in text
    assert "no quantized form of cube [2, 3, 4]" in text
    stored = {row.name: row.scheme for row in report.rows}
    assert stored["layers.1.attention.q"] == "qint4 affine group 64, activations qint8"
    assert json.loads(report.to_json()) == report.to_dict()
    again = rquant.quantize(model, exclude="head")
    assert {row.name: row.scheme for row in again.quantized} == {k: v for k, v in stored.items() if v}
    assert (again.bytes_float, again.bytes_after) == (report.bytes_float, report.bytes_after)


def test_the_report_says_where_scales_are_float32():
    model = Model()
    model.head.weight.data[0] *= 1e8
    report = rquant.quantize(model, "int4", exclude="layers.0")
    notes = {row.name: row.note for row in report.rows}
    assert "float32 scales" in notes["head"]
    assert notes["layers.0.attention.q"] == "excluded by 'layers.0'"
    rquant.freeze(model)
    assert model.state_dict()["head.weight_scale"].dtype == torch.float32
    assert report.bytes_after == sum(tensor.nbytes for tensor in model.state_dict().values())


class Clever(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_what_computes_something_else_stays_float():
    model = nn.Sequential(
        Clever(4, 4),
        nn.Embedding(4, 4, max_norm=1.0),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.Linear(4, 4),
    )
    report = rquant.quantize(model)
    assert chosen(model) == ["3"]
    reasons = {row.name: row.note for row in report.floating}
    assert reasons["0"] == "Clever has a forward of its own"
    assert reasons["1"] == "max_norm rewrites its weight"


def test_pain_09_many_kinds_of_modules_are_quantized():
    kinds = [nn.Linear(8, 8), nn.Embedding(8, 8), nn.EmbeddingBag(8, 8), nn.MultiheadAttention(8, 2)]
    model = nn.ModuleList(kinds)
    report = rquant.quantize(model, include="*")
    assert chosen(model) == ["0", "1", "2", "3.q_proj", "3.k_proj", "3.v_proj", "3.out_proj"]
    assert list(report.float_because) == ["biases of quantized layers"]


def test_pain_22_nothing_is_skipped_for_its_size():
    model = nn.Sequential(nn.Linear(70, 3), nn.Linear(3, 1))
    report = rquant.quantize(model, "int4", group_size=64)
    assert [row.scheme for row in report.rows] == ["qint4 affine group 64"] * 2


def test_a_module_used_twice_stays_one_module():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    rquant.quantize(model)
    assert model[0] is model[2]
    assert isinstance(model[0], rquant.Linear)


def tied():
    model = Model()
    model.head.weight = model.embed.weight
    return model


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, ["embed", *LINEAR]),
        ({"include": "embed"}, ["embed", "head"]),
        ({"exclude": "embed"}, LINEAR[:4]),
        ({"exclude": "head"}, LINEAR[:4]),
    ],
)
def test_defect_b06_a_tied_weight_is_quantized_for_all_or_none(arguments, names):
    model, ids = tied(), torch.arange(20)
    report = rquant.quantize(model, **arguments)
    assert chosen(model) == names
    notes = {row.name: row.note for row in report.rows}
    if "exclude" in arguments:
        excluded = arguments["exclude"]
        assert notes[excluded] == f"excluded by {excluded!r}"
        assert excluded == "head" or notes["head"] == "tied to embed: excluded by 'embed'"
    else:
        assert notes["head"] == "tied to embed"
    rquant.freeze(model)
    assert model(ids).shape == (20, 20)


def test_a_weight_that_something_else_uses_too_stays_float():
    model = Model()
    model.extra = nn.Module()
    model.extra.table = model.head.weight
    report = rquant.quantize(model)
    assert "head" not in chosen(model)
    assert {row.name: row.note for row in report.rows}["head"] == "tied to extra: no quantized form"


def test_parameters_stay_the_optimizer_s():
    model = Model()
    weight, bias = model.head.weight, model.head.bias
    rquant.quantize(model)
    assert model.head.weight is weight
    assert model.head.bias is bias


def test_gpt2_from_its_config():
    """124,439,808 float32 parameters; 48 Conv1D of 84,934,656 weights become as many bytes."""
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    report = rquant.quantize(model, "int8", exclude=["lm_head"])
    size = report.bytes_before + sum(b.nbytes for b in model.buffers() if b.dim() == 4)
    assert size in (497_759_232, 497_759_232 + MASKS)
    converted = [row for row in report.rows if row.type == "Conv1D"]
    assert len(converted) == 48
    assert all(row.scheme for row in converted)
    assert not any(type(module).__name__ == "Conv1D" for module in model.modules())
    biases = sum(m.out_features for m in model.modules() if isinstance(m, rquant.Linear)) * 4
    assert (
        sum(row.bytes_after for row in converted) == 84_934_656 + 2 * biases
    )  # a scale per output is a bias's size
    assert biases == 12 * (2304 + 768 + 3072 + 768) * 4
    rquant.freeze(model)
    packed = sum(t.nbytes for name, t in model.state_dict().items() if name.endswith("weight_packed"))
    assert packed == 84_934_656


def test_gpt2_computes_nearly_the_same():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=100, **ends)
    model, ids = transformers.GPT2LMHeadModel(config).eval(), torch.arange(10)[None]
    with torch.no_grad():
        want = model(ids).logits
        rquant.quantize(model)
        rquant.freeze(model)
        got = model(ids).logits
        assert torch.equal(model.generate(ids, max_new_tokens=3, do_sample=False)[:, :10], ids)
    assert nn.functional.cosine_similarity(want.flatten(), got.flatten(), 0) > 0.999
