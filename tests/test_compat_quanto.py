"""quanto's calls: the six steps from float to a reloaded model, and each name."""

import copy
import io
import json
import pickle
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import rquant
import rquant.compat.quanto as quanto
from rquant.compat.quanto import Calibration, freeze, qint8, quantization_map, quantize, requantize
from rquant.qat.output import Output


class Digits(nn.Module):
    """Ends in a plain operation, as models do: its output is a plain tensor."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 4)
        self.register_buffer("shift", torch.arange(16.0) / 16, persistent=False)

    def forward(self, x):
        return F.log_softmax(self.head(self.norm(self.body(x + self.shift))), dim=-1)


@pytest.fixture
def digits():
    """A model and batches of a problem that it can learn: which quarter of the input is largest."""
    torch.manual_seed(0)
    data = torch.randn(512, 16)
    target = data.unflatten(1, (4, 4)).sum(-1).argmax(-1)
    return Digits(), list(zip(data.split(64), target.split(64), strict=True))


@pytest.mark.parametrize("kept_as", ["safetensors", "pickle"])
def test_the_six_steps(digits, kept_as, tmp_path):
    model, train_loader = digits
    device, samples = torch.device("cpu"), train_loader[0][0]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    torchs_own = torch.Tensor.dequantize

    quantize(model, weights=qint8, activations=qint8)
    assert isinstance(model.head, quanto.QLinear)

    with Calibration(momentum=0.9):
        model(samples)

    model.train()
    losses, before = [], model.body[0].weight.detach().clone()
    for _ in range(5):
        for data, target in train_loader:
            data, target = data.to(device), target.to(device)
            optimizer.zero_grad()
            output = model(data).dequantize()
            loss = F.nll_loss(output, target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.equal(model.body[0].weight, before)  # the first layer learns: gradients reach it
    assert torch.Tensor.dequantize is torchs_own

    unfrozen = model.eval()(samples)
    freeze(model)
    assert torch.equal(model(samples), unfrozen)

    state, config = tmp_path / "model", tmp_path / "quantization_map.json"
    if kept_as == "safetensors":
        save_file(model.state_dict(), state)
        state_dict = load_file(state)
    else:
        torch.save(model.state_dict(), state)
        state_dict = torch.load(state, weights_only=True)
    with open(config, "w") as f:
        json.dump(quantization_map(model), f)
    with open(config) as f:
        qmap = json.load(f)

    with torch.device("meta"):
        new_model = Digits()
    requantize(new_model, state_dict, qmap, device=torch.device("cpu"))
    assert torch.equal(new_model.eval()(samples), model(samples))
    assert torch.equal(new_model.shift, model.shift)


@pytest.mark.parametrize("activations", [None, "qint8", "qfloat8"])
@pytest.mark.parametrize("weights", ["qint2", "qint4", "qint8", "qfloat8", "qfloat8_e5m2"])
def test_every_pair_of_types_trains_and_comes_back(digits, weights, activations):
    model, ((data, target), *_) = digits
    quantize(model, weights=weights, activations=activations)
    F.nll_loss(model(data).dequantize(), target).backward()
    assert model.body[0].weight.grad.abs().sum() > 0
    freeze(model)
    with torch.device("meta"):
        new_model = Digits()
    qmap = json.loads(json.dumps(quantization_map(model)))
    requantize(new_model, model.state_dict(), qmap, device=torch.device("cpu"))
    assert torch.equal(new_model(data), model(data))


def test_an_output_s_gradients_are_those_without_dequantize(digits):
    model, batches = digits
    data, target = batches[0]
    quantize(model, weights="int4")
    F.nll_loss(model(data), target).backward()
    want = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    F.nll_loss(model(data).dequantize(), target).backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), want, strict=True))


def test_torchs_own_dequantize_has_no_derivative():
    """What the class is for. When this fails, torch has one, and `Output` can go."""
    with pytest.raises(RuntimeError, match="derivative for dequantize"):
        nn.Linear(2, 2)(torch.ones(1, 2)).dequantize().sum().backward()


def test_an_output_is_light(digits):
    model, ((data, _), *_) = digits
    quantize(model, weights=qint8)
    output = model(data)
    assert type(output) is Output
    for plain in (output * 2, output.detach(), output[0], torch.cat([output, output]), output.dequantize()):
        assert type(plain) is torch.Tensor
    assert output.dequantize().data_ptr() == output.data_ptr()
    with torch.no_grad():
        assert type(model(data)) is torch.Tensor
    file = io.BytesIO()
    torch.save(output, file)
    file.seek(0)
    assert type(torch.load(file, weights_only=True)) is torch.Tensor


def test_an_output_goes_into_the_next_model(digits):
    """Native operations take it for what it is, a tensor."""
    _, ((data, _), *_) = digits
    first, second = nn.Sequential(nn.Linear(16, 64)), nn.Sequential(nn.Linear(64, 8))
    quantize(first, weights=qint8)
    quantize(second, weights="int4", activations=qint8)
    for _ in range(2):
        second(first(data)).dequantize().sum().backward()
        assert first[0].weight.grad.abs().sum() > 0
        plain = second(first(data).dequantize())
        assert torch.equal(second(first(data)), plain)
        freeze(second)


Pair = namedtuple("Pair", "loss logits")


class Shaped(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.layer, self.shape = nn.Linear(4, 4), shape

    def forward(self, x):
        y = self.layer(x)
        return self.shape(y.mean(), y)


@pytest.mark.parametrize(
    "shape", [lambda *t: t, Pair, lambda *t: [*t], lambda loss, logits: {"loss": loss, "logits": logits}]
)
def test_outputs_of_several_tensors_keep_their_class(shape):
    model, x = Shaped(shape), torch.randn(3, 4)
    made = type(model(x))
    quantize(model, weights=qint8)
    output = model(x)
    assert type(output) is made
    loss, logits = output.values() if isinstance(output, dict) else output
    (loss.dequantize() + logits.dequantize().sum()).backward()
    assert model.layer.weight.grad.abs().sum() > 0


def test_a_transformers_output_stays_one():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **sizes)).eval()
    ids = torch.arange(10)[None]
    quantize(model, weights=qint8, exclude="classifier")
    output = model(ids, labels=torch.tensor([1]))
    assert isinstance(output, transformers.modeling_outputs.SequenceClassifierOutput)
    assert output.logits is output["logits"] is output[1]
    output.logits.dequantize().sum().backward()


def test_the_mark_is_in_no_file_and_survives_copies(digits):
    model, ((data, _), *_) = digits
    names = set(model.state_dict())
    quantize(model, weights=qint8)
    quantize(model, weights=qint8)
    assert len(model._forward_hooks) == 1
    assert set(model.state_dict()) == names
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(data).dequantize().sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_compiled_and_traced_models_return_plain_tensors(digits):
    model, ((data, _), *_) = digits
    quantize(model, weights=qint8)
    freeze(model.eval())
    want = model(data).dequantize()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    traced = torch.jit.trace(model, data)
    for fast in (compiled, traced):
        output = fast(data)
        assert type(output) is torch.Tensor
        assert torch.equal(output, want)


def test_the_arguments_of_quantize(digits):
    model, _ = digits
    quantize(model, "qint4", None, quanto.MaxOptimizer(), "body*", ["*.0"])
    chosen = [name for name, module in model.named_modules() if isinstance(module, quanto.QModuleMixin)]
    assert chosen == ["body.2"]
    for arguments, message in [
        ({"activations": qint8}, "weights: expected a qtype"),
        ({"weights": qint8, "exclude": "lm_head"}, "exclude: .*'lm_head' matches nothing"),
        ({"weights": "int3"}, "weights: .*'int3'"),
    ]:
        with pytest.raises(ValueError, match=message):
            quantize(model, **arguments)


def test_the_optimizers():
    weight, errors = torch.randn(16, 128), []
    for optimizer in (None, quanto.MaxOptimizer(), quanto.HqqOptimizer(lp_norm=0.9, iters=30)):
        made = quanto.quantize_module(nn.Linear(128, 16), "qint2", optimizer=optimizer)
        made.weight.data = weight
        errors.append((made.dequantize() - weight).abs().pow(0.9).sum().item())
    assert errors[0] == errors[1] > errors[2]


def test_requantize_tells_a_map_of_quantos():
    with pytest.raises(ValueError, match=r"quantization_map: .*quanto's own are not read"):
        requantize(nn.Linear(2, 2), {}, {"": {"weights": "qint8", "activations": "none"}})


def test_quantize_module():
    linear = nn.Linear(16, 4)
    made = quanto.quantize_module(linear, weights="int4")
    assert type(linear) is nn.Linear
    assert type(made) is rquant.Linear
    assert made.weight is linear.weight
    assert not made.frozen
    assert quanto.quantize_module(nn.ReLU(), weights=qint8) is None
    for module, kind in ((nn.Conv2d(3, 4, 3), quanto.QConv2d), (nn.LayerNorm(4), quanto.QLayerNorm)):
        assert type(quanto.quantize_module(module, weights=qint8, activations=qint8)) is kind


def test_calibration_makes_scales_static_and_says_when_it_saw_nothing(digits, capsys):
    model, ((data, _), *_) = digits
    with pytest.warns(UserWarning, match="Calibration: no layer with int8 activations ran"), Calibration():
        model(data)
    weights_only = copy.deepcopy(model)
    quantize(weights_only, qint8)
    with Calibration():  # has nothing to do, as its users know
        weights_only(data)
    want = weights_only(data)
    quantize(model, qint8, qint8)
    with Calibration(momentum=0.0, streamline=False, debug=True) as calibration:
        model(data * 100)
        model(data)
    assert "body.0.input" in capsys.readouterr().out
    assert calibration.momentum == 0.0
    first = model.body[0]
    largest = (data + model.shift).abs().max()
    assert first.input_scale.item() == pytest.approx((largest / 127).item())
    assert first.input_zero_point.item() == 0
    assert torch.cosine_similarity(model(data).flatten(), want.flatten(), 0) > 0.999
    with pytest.raises(KeyError), Calibration():
        raise KeyError
    assert not torch.nn.modules.module._global_forward_hooks
    for momentum in (1.5, -0.1, "0.9", True, float("nan")):
        with pytest.raises(ValueError, match="momentum: expected a number from 0 to 1"):
            Calibration(momentum=momentum)


def test_a_language_model_is_quantized_saved_and_reloaded(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model, ids = (
        transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, **sizes)),
        torch.ones(1, 4).long(),
    )
    qmodel = quanto.QuantizedModelForCausalLM.quantize(model.eval(), weights="qint4", exclude="lm_head")
    assert isinstance(qmodel.model.layers[0].mlp.up_proj, quanto.QLinear)
    assert type(qmodel.lm_head) is nn.Linear
    qmodel.save_pretrained(tmp_path)
    again = quanto.QuantizedModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, qmodel(ids).logits)
    assert torch.equal(again.generate(ids, max_new_tokens=3), qmodel.generate(ids, max_new_tokens=3))


def test_absmax_scale():
    x = torch.tensor([[1.0, -254.0], [0.5, 127.0]])
    assert quanto.absmax_scale(x) == 2.0
    assert quanto.absmax_scale(x, axis=0).tolist() == [[2.0], [1.0]]
    assert torch.equal(quanto.absmax_scale(x, "int4", axis=-1), torch.tensor([[1.0, 254.0]]) / 7)
    with pytest.raises(ValueError, match=r"qtype: .*qfloat8"):
        quanto.absmax_scale(x, quanto.qfloat8)


def test_every_name_of_quantos_is_there_or_says_what_to_use():
    names = {}
    exec("from rquant.compat.quanto import *", names)
    assert {name for name in names if name != "__builtins__"} == set(quanto.__all__)
    assert not set(quanto.INSTEAD) & set(quanto.__all__)
    for name, instead in quanto.INSTEAD.items():
        with pytest.raises(ImportError) as raised:
            exec(f"from rquant.compat.quanto import {name}")
        assert instead in str(raised.value)
    with pytest.raises(AttributeError, match=r"'rquant.compat.quanto' has no attribute 'qint3'"):
        quanto.qint3  # noqa: B018
