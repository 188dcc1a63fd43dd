"""Complaints of other quantizers' users about models: files, modules, training, frameworks (docs/defects-and-pains.md)."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from saved_model import IDS, Model, frozen, skeleton
from torch import nn
from torch.nn import functional as F

import rquant


def cosine(a, b):
    return F.cosine_similarity(a.flatten().float(), b.flatten().float(), 0).item()


def test_pain_06_one_plain_file_is_the_model(tmp_path):
    model, path = frozen("int4"), tmp_path / "m.safetensors"
    rquant.save(model, path)
    assert torch.equal(rquant.load(path, skeleton())(IDS), model(IDS))
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["rquant"])
        assert "steps" in file.keys()  # noqa: SIM118
    assert config["modules"]["body.0"]["weights"] == "qint4"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"m\.safetensors"):
        rquant.load(path, skeleton())
    path.write_bytes(data)
    other = skeleton()
    other.body[2] = nn.Linear(70, 65, device="meta")
    with pytest.raises(ValueError, match=r"m.safetensors: body.2.bias"):
        rquant.load(path, other)


@pytest.mark.parametrize("loudness", [1e-3, 1.0, 1e3])
def test_pain_07_activations_are_good_without_calibration(loudness):
    """Uncalibrated is the normal case: there is no scale that would have to be guessed."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)), torch.randn(32, 64)
    want = model(x * loudness)
    rquant.quantize(model, "int8", "int8")
    rquant.freeze(model)
    assert cosine(model(x * loudness), want) > 0.999


def test_pain_07_a_choice_of_calibration():
    """One far outlier among the samples, for which the least squared error would pay: others leave it out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)).eval()
    samples, x = torch.randn(512, 64), torch.randn(32, 64)
    samples[7, 7] = 300.0
    want = model(x)
    rquant.quantize(model, "int8", "int8")
    calibration = rquant.calibrate(model, [samples], "minmax", samples=512)
    rquant.freeze(model)
    whole = cosine(model(x), want)
    calibration.apply(model, "entropy")
    assert 1 - cosine(model(x), want) < 0.5 * (1 - whole)
    calibration.apply(model, "percentile", percentile=99.9)
    assert cosine(model(x), want) > 0.995


def test_pain_09_embeddings_conv1d_attention_and_recurrent_layers_are_quantized():
    """GPT-2 is HF Conv1D and embeddings but for its head."""
    transformers = pytest.importorskip("transformers")
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(n_layer=1, n_embd=64, n_head=4, vocab_size=128, n_positions=32, **ends)
    model = nn.ModuleDict(
        {
            "gpt2": transformers.GPT2LMHeadModel(config),
            "bag": nn.EmbeddingBag(64, 64),
            "attention": nn.MultiheadAttention(64, 4),
            "lstm": nn.LSTM(64, 64),
            "gru": nn.GRUCell(64, 64),
        }
    )
    report = rquant.quantize(model, "int8", include="*")
    types = {row.type for row in report.quantized}
    assert {"Conv1D", "Embedding", "EmbeddingBag", "Linear"} <= types
    assert report.bytes_float < 0.05 * report.bytes_before


@pytest.mark.parametrize("activations", [None, "int8"])
def test_pain_09_convolutions_are_quantized(activations):
    torch.manual_seed(0)
    layers = [
        nn.Conv1d(3, 8, 3),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ConvTranspose1d(8, 4, 2),
        nn.ConvTranspose2d(8, 4, 2),
    ]
    inputs = [torch.randn(2, layer.in_channels, *[7] * len(layer.kernel_size)) for layer in layers]
    wanted = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
    model = nn.ModuleList(layers)
    report = rquant.quantize(model, "int8", activations)
    assert len(report.quantized) == 4
    rquant.freeze(model)
    for layer, x, want in zip(model, inputs, wanted, strict=True):
        assert cosine(layer(x), want) > 0.999


def test_pain_10_experts_in_3d_parameters_are_quantized_or_named():
    transformers = pytest.importorskip("transformers", "5.0")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.MixtralConfig(vocab_size=64, num_key_value_heads=2, num_local_experts=4, **sizes)
    with torch.device("meta"):
        model = transformers.MixtralForCausalLM(config)
    experts = sum(p.nbytes for p in model.parameters() if p.dim() == 3)
    model.odd = nn.Module()
    model.odd.cube = nn.Parameter(torch.empty(3, 4, 5, device="meta"))
    report = rquant.quantize(model, "int8")
    assert experts > 0.5 * report.bytes_before
    assert sum(row.bytes_before for row in report.quantized if "experts" in row.name) == experts
    assert "no quantized form of cube [3, 4, 5]" in str(report)


@pytest.mark.parametrize("weights", ["int8", "int4", "int2"])
def test_pain_11_a_checkpoint_is_of_no_device(weights):
    """The stored bytes, read by plain torch as any device could, are the weight that the CPU's kernels use."""
    layer = rquant.Linear.from_float(nn.Linear(70, 9), weights, group_size=16, symmetric=False)
    state = layer.state_dict()
    bits, k = layer.scheme.bits, layer.in_features
    shifts = torch.arange(0, 8, bits)
    codes = (state["weight_packed"][:, :, None] >> shifts & (1 << bits) - 1).flatten(1)[:, :k].float()
    group = torch.arange(k) // 16
    scale, zero = state["weight_scale"].float()[:, group], state["weight_zero_point"].float()[:, group]
    assert torch.equal((codes - zero) * scale, layer.weight.dequantize())


def test_pain_12_what_is_saved_is_not_what_a_kernel_reads():
    """Panels are this machine's: states and files have canonical bytes, the same ones that quantizing alone gives."""
    linear = nn.Linear(100, 30)
    state = rquant.Linear.from_float(linear, "int4").state_dict()
    alone = rquant.quantize_tensor(linear.weight, "int4").matrix
    assert list(state) == ["bias", "weight_packed", "weight_scale", "weight_zero_point"]
    for name, tensor in zip(list(state)[1:], alone, strict=False):
        assert torch.equal(state[name], tensor)


def test_pain_14_a_frozen_model_is_a_module_like_any_other():
    model = frozen("int4", "int8")
    want = model(IDS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to("cpu")):
        assert torch.equal(other(IDS), want)
    other = frozen("int4", "int8")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(IDS), want)
    assert model.half()(IDS).dtype == torch.float16
    assert model.bfloat16()(IDS).dtype == torch.bfloat16
    assert model.body[0].weight.device.type == "cpu"


class LoRA(nn.Module):
    """Low-rank adapters beside a layer (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>)."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base = base
        self.down, self.up = (
            nn.Linear(base.in_features, rank, False),
            nn.Linear(rank, base.out_features, False),
        )

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("weights", ["int8", "int4", "int2"])
def test_pain_15_adapters_train_on_a_packed_base(weights):
    """The gradient that reaches the first adapter has gone through the second's packed layer, as through its float weight."""
    torch.manual_seed(0)
    x, grads = torch.randn(8, 32), []
    base = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))
    rquant.quantize(base, weights)
    rquant.freeze(base)
    assert isinstance(base[0], nn.Linear)
    first, second = LoRA(base[0]), LoRA(base[2])
    for _ in range(2):
        nn.Sequential(first, base[1], second)(x).square().mean().backward()
        adapters = [first.down, first.up, second.down, second.up]
        grads.append([layer.weight.grad for layer in adapters])
        for layer in adapters:
            layer.weight.grad = None
        for lora in (first, second):  # once more, over the float weights that the integers mean
            layer = nn.Linear(32, 32)
            layer.weight, layer.bias = nn.Parameter(lora.base.weight.dequantize()), lora.base.bias
            lora.base = layer
    for packed, floats in zip(*grads, strict=True):
        assert packed.abs().sum() > 0
        torch.testing.assert_close(packed, floats)


def test_pain_17_a_layer_may_have_a_scheme_of_its_own():
    model = Model()
    rules = [("embed", None), ("body.0", "int8"), (nn.Linear, {"weights": "int4", "group_size": 16})]
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    rquant.quantize(model, "int2", rules=rules)
    assert str(model.body[0].scheme) == "qint8 symmetric per channel"
    assert str(model.head.scheme) == "qint4 affine group 16"
    assert type(model.embed) is nn.Embedding


def test_pain_18_a_tied_weight_is_stored_once(tmp_path):
    model, path = frozen("int8"), tmp_path / "m.safetensors"
    rquant.save(model, path)
    with safe_open(path, "pt") as file:
        assert [name for name in file.keys() if "packed" in name and "body" not in name] == [  # noqa: SIM118
            "embed.weight_packed"
        ]
    loaded = rquant.load(path, skeleton())
    assert loaded.embed.held["_panels"] is loaded.head.held["_panels"]


@pytest.mark.parametrize("scheme", [("int8", "int8"), ("int4", "int8"), ("int2", None)])
def test_pain_19_what_was_trained_is_what_is_deployed(scheme):
    """Evaluation before freeze and after is equal to the last bit; so are the integers."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 8)), torch.randn(64, 48)
    rquant.quantize(model, *scheme)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    want, weight = model.eval()(x), model[0].weight.detach().clone()
    rquant.freeze(model)
    assert torch.equal(model(x), want)
    q = rquant.quantize_tensor(weight, scheme[0])
    assert torch.equal(model.state_dict()["0.weight_packed"], q.matrix.codes)


class Branches(nn.Module):
    """Control flow on data, a layer called twice, by keyword, and one kept in a plain list's place."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x, *, steps=2):
        for _ in range(steps):
            x = self.layers[int(x.sum() > 0)](input=x)
        return {"out": x} if x.isfinite().all() else None


def test_pain_20_no_stubs_and_no_tracing():
    model, x = Branches(), torch.ones(2, 8)
    want = model(x, steps=3)["out"]
    rquant.quantize(model, "int8", "int8")
    rquant.freeze(model)
    assert cosine(model(x, steps=3)["out"], want) > 0.99
    bad = Branches()
    bad.layers[1].weight.data[3, 2] = torch.nan
    with pytest.raises(
        ValueError, match=r"layers.1.weight: expected finite numbers, got NaN or infinity at \[3, 2\]"
    ):
        rquant.quantize(bad)


def test_pain_20_batch_norms_fold_by_the_order_in_which_layers_run():
    model = nn.ModuleDict({"norm": nn.BatchNorm2d(8), "conv": nn.Conv2d(3, 8, 3)}).eval()
    nn.init.uniform_(model.norm.running_var, 0.5, 2.0)
    model.forward = lambda x: model.norm(model.conv(x))
    x = torch.randn(2, 3, 6, 6)
    want = model(x)
    assert [row.layer for row in rquant.fold_bn(model, x).folded] == ["conv"]
    assert type(model.norm) is nn.Identity
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activations", [None, "int8"])
def test_pain_21_compiled_and_exported_in_one_graph(activations):
    model = frozen("int4", activations)
    with torch.no_grad():
        want = model(IDS)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(IDS)
        exported = torch.export.export(model, (IDS,)).module()(IDS)
    torch.testing.assert_close(compiled, want)
    assert torch.equal(exported, want)


def test_pain_22_nothing_is_skipped_in_silence():
    """Inputs that no group size divides are quantized with a shorter last group; a name that means nothing is an error."""
    model, x = nn.Sequential(nn.Linear(100, 7), nn.Linear(7, 3)), torch.randn(4, 100)
    want = model(x)
    report = rquant.quantize(model, "int4", group_size=64, exclude=[])
    assert [row.scheme for row in report.rows] == ["qint4 affine group 64"] * 2
    rquant.freeze(model)
    assert model.state_dict()["0.weight_scale"].shape == (7, 2)
    assert cosine(model(x), want) > 0.97
    for argument in ({"include": "2"}, {"exclude": "2"}, {"rules": [("2", "int8")]}):
        with pytest.raises(ValueError, match="matches nothing"):
            rquant.quantize(nn.Sequential(nn.Linear(4, 4)), **argument)


def test_the_document_names_tests_that_are_there():
    """Each defect and each complaint has its row, with a test of its name or the reason why there is none."""
    root = Path(__file__).parent.parent
    rows = [
        [cell.strip() for cell in line.strip("|\n ").split("|")]
        for line in (root / "docs/defects-and-pains.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    rows = {cells[0]: cells for cells in rows if cells[0].lstrip("b").isdigit()}
    assert [*rows] == [f"b{i}" for i in range(1, 15)] + [str(i) for i in range(1, 25)]
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((root / "tests").glob("test_*.py")))
    for key, cells in rows.items():
        kind, number = ("defect_b", key[1:]) if key.startswith("b") else ("pain_", key)
        name = f"test_{kind}{int(number):02}"
        assert (f"def {name}_" in code) == (f"`{name}`" in cells[-1]), key
        assert f"`{name}`" in cells[-1] or "not yet there" in cells[2], key
