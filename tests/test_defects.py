"""Fourteen defects of optimum-quanto 0.2.7 (docs/defects-and-pains.md): what rquant does in their place."""

import copy
import json
from itertools import pairwise

import pytest
import torch
from saved_model import IDS, Model, frozen, skeleton
from torch import nn

import rquant
from rquant.compat.quanto import Calibration


def perceptron(*sizes):
    torch.manual_seed(0)
    layers = [nn.Linear(k, n) for k, n in pairwise(sizes)]
    return nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))


def reloaded(model):
    """Through a state dict and a JSON map, onto the meta skeleton."""
    qmap = json.loads(json.dumps(rquant.quantization_map(model)))
    return rquant.requantize(skeleton(), model.state_dict(), qmap)


@pytest.mark.parametrize("streamline", [True, False])
def test_defect_b01_outputs_are_int8_where_layers_read_them(streamline):
    """After calibration layers hand each other int8; what leaves the model is a plain tensor, and it takes no hooks."""
    model, x, seen = perceptron(16, 32, 8).eval(), torch.randn(5, 16), []
    rquant.quantize(model, "int8", "int8")
    dynamic = model(x)
    assert not any(module._forward_hooks for module in model.modules())
    with Calibration(streamline=streamline):
        model(x)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model[2].register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    with torch.no_grad():
        got = model(x)
    between, last = seen
    assert between.value.rounded.codes.dtype == torch.int8  # rounded where it was made, ReLU included
    assert between.value.floats is None
    assert type(last) is type(got) is torch.Tensor
    assert torch.cosine_similarity(got.flatten(), dynamic.flatten(), 0) > 0.999


def test_defect_b02_momentum_weighs_inputs():
    layer, data = nn.Sequential(nn.Linear(32, 8)), [torch.randn(4, 32) * (1 + i) for i in range(4)]
    rquant.quantize(layer, "int8", "int8")
    for momentum in (0.0, 0.5, 0.9):
        with Calibration(momentum=momentum):
            for x in data:
                layer(x)
        lo, hi = data[0].aminmax()
        for x in data[1:]:
            lo, hi = (
                momentum * m + (1 - momentum) * new for m, new in zip((lo, hi), x.aminmax(), strict=True)
            )
        assert layer[0].input_scale.item() == pytest.approx(max(-lo, hi).item() / 127)
        assert layer[0].input_zero_point.item() == 0


def test_defect_b02_without_calibration_an_input_s_scale_is_its_own():
    """No batch before it, and no other row of its own, has a say in how a row is rounded."""
    layer = rquant.Linear.from_float(nn.Linear(32, 8), "int8", "int8")
    x, loud = torch.randn(4, 32), 1000 * torch.randn(4, 32)
    want = layer(x)
    layer(loud)
    assert torch.equal(layer(x), want)
    assert torch.equal(layer(torch.cat([loud, x]))[4:], want)


def test_defect_b03_a_reloaded_model_computes_what_the_saved_one_did(tmp_path):
    model = Model().eval()
    rquant.quantize(model, "int8", "int8")
    with Calibration():
        model(IDS)
    rquant.freeze(model)
    rquant.save(model, tmp_path / "m.safetensors")
    for other in (reloaded(model), rquant.load(tmp_path / "m.safetensors", skeleton())):
        assert torch.equal(other(IDS), model(IDS))
        hooks = [[len(m._forward_hooks), len(m._forward_pre_hooks)] for m in other.modules()]
        assert hooks == [[0, 0]] * len(hooks)


def test_defect_b04_non_persistent_buffers_survive_meta():
    model = frozen("int8")
    model.angles += 5
    assert "angles" not in model.state_dict()
    other = reloaded(model)
    assert other.angles.tolist() == [5.0 + i for i in range(8)]
    assert "angles" not in other.state_dict()


@pytest.mark.parametrize("name", ["body.2.weight_packed", "body.2.weight_scale", "body.0.bias", "steps"])
def test_defect_b05_a_missing_tensor_is_an_error_that_names_it(name):
    model = frozen("int8")
    state, qmap = model.state_dict(), rquant.quantization_map(model)
    tensor = state.pop(name)
    with pytest.raises(ValueError, match=f"{name.replace('weight_packed', 'weight')}.*: missing"):
        rquant.requantize(skeleton(), state, qmap)
    state[name] = tensor
    state["body.9.weight"] = tensor
    with pytest.raises(ValueError, match=r"body.9.weight: unexpected"):
        rquant.requantize(skeleton(), state, qmap)


def test_defect_b06_tied_weights_stay_tied():
    model = Model().eval()
    rquant.quantize(model, "int4")
    assert model.head.weight is model.embed.weight
    rquant.freeze(model)
    for other in (model, copy.deepcopy(model), model.double().float(), reloaded(model)):
        assert other.head.held["_panels"] is other.embed.held["_panels"]
        assert torch.equal(other.head.weight.dequantize(), other.embed.weight.dequantize())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_defect_b07_a_frozen_model_changes_its_dtype(dtype):
    model = nn.Sequential(rquant.Linear.from_float(nn.Linear(16, 4), "int4"))
    codes, want = model.state_dict()["0.weight_packed"], model(torch.ones(2, 16)).detach()
    model.to(dtype)
    assert model[0].weight.dtype == model[0].bias.dtype == dtype
    assert torch.equal(model.state_dict()["0.weight_packed"], codes)
    if dtype != torch.float64:
        got = model(torch.ones(2, 16, dtype=dtype))
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), want, rtol=0.02, atol=0.02)
    torch.testing.assert_close(model.float()(torch.ones(2, 16)), want, rtol=0.01, atol=0.01)


def test_defect_b08_a_frozen_model_is_copied():
    model = frozen("int4", "int8")
    other = copy.deepcopy(model)
    assert torch.equal(other(IDS), model(IDS))
    assert other.head.held["_panels"] is not model.head.held["_panels"]


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("weights", ["int8", "int4", "int2", "float8", "float8_e5m2"])
def test_defect_b09_a_row_of_zeros_gives_zeros(weights, activations):
    linear, x = nn.Linear(16, 4, bias=False), torch.randn(3, 16)
    linear.weight.data[1] = x[2] = 0.0
    for symmetric in (True,) if "float" in weights else (True, False):
        layer = rquant.Linear.from_float(linear, weights, activations, symmetric=symmetric)
        assert layer.weight.dequantize()[1].tolist() == [0.0] * 16
        y = layer(x)
        assert y.isfinite().all()
        assert not y[:, 1].any()
        assert not y[2].any()


def test_defect_b10_outputs_stack_split_and_join_as_tensors_do():
    layer = rquant.Linear.from_float(nn.Linear(8, 16), "int8", "int8")
    outputs = [layer(torch.randn(8, 8)) for _ in range(3)]
    plain = [torch.tensor(y.tolist()) for y in outputs]
    assert torch.equal(torch.stack(outputs), torch.stack(plain))
    assert torch.equal(torch.cat(outputs), torch.cat(plain))
    for part, want in zip(outputs[0].split(4), plain[0].split(4), strict=True):
        assert part.shape == (4, 16)
        assert torch.equal(part, want)


def test_defect_b10_what_flows_between_int8_layers_does_too():
    seen = []

    def forward(x):
        y = model.first(x)
        seen.append(type(y))
        a, b = y.split(8, dim=-1)
        return model.last(torch.cat([b, a, b], dim=-1))

    torch.manual_seed(0)
    model, x = nn.ModuleDict({"first": nn.Linear(8, 16), "last": nn.Linear(24, 4)}), torch.randn(32, 8)
    model.forward = forward
    want = model(x)
    rquant.quantize(model, "int8", "int8")
    with rquant.Calibration("minmax"):
        model(x)
    rquant.freeze(model.eval())
    got = model(x)
    assert (seen[0], seen[-1]) == (torch.Tensor, rquant.flow.Activation)
    assert type(got) is torch.Tensor
    torch.testing.assert_close(got, want, rtol=0, atol=0.02 * want.abs().max().item())


@pytest.mark.parametrize("activations", [None, "int8"])
def test_defect_b11_inputs_by_keyword(activations):
    model, x = nn.ModuleDict({"linear": nn.Linear(8, 4), "embed": nn.Embedding(8, 4)}), torch.randn(3, 8)
    rquant.quantize(model, "int8", activations, include="*")
    with Calibration():
        model.linear(input=x)
    unfrozen = model.eval().linear(input=x)
    rquant.freeze(model)
    assert torch.equal(model.linear(input=x), unfrozen)
    assert model.embed(input=torch.arange(3)).shape == (3, 4)


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_defect_b11_a_name_that_matches_nothing_is_an_error(argument):
    model = perceptron(4, 4)
    with pytest.raises(ValueError, match=rf"{argument}: .*'lm_haed' matches nothing"):
        rquant.quantize(model, **{argument: "lm_haed"})
    assert type(model[0]) is nn.Linear


def test_defect_b12_a_clipped_element_gets_no_gradient():
    """Scales are stored in float16: where one is rounded down, the ends of its group's range are clipped."""
    torch.manual_seed(0)
    linear = nn.Linear(8, 2000, bias=False)
    linear.weight.data = torch.randn(2000, 8) + 0.5
    rquant.quantize(linear, "int8", symmetric=False, group_size=8)
    linear(torch.ones(1, 8)).sum().backward()
    q = rquant.quantize_tensor(linear.weight.detach(), "int8", symmetric=False, group_size=8)
    steps = torch.round(linear.weight / q.scale.float()) + q.zero_point
    clipped = (steps > 127) | (steps < -128)
    assert 0 < clipped.sum() < 200
    assert torch.equal(linear.weight.grad, (~clipped).float())


def test_defect_b12_scales_learn():
    layer = nn.Linear(8, 4)
    rquant.quantize(layer, "int8", "int8")
    with Calibration():
        layer(torch.randn(16, 8))
    scales = rquant.qat.prepare(layer.train())
    layer(torch.randn(16, 8)).square().sum().backward()
    assert len(scales) == 2
    assert all(scale.grad.abs().max() > 0 for scale in scales)


def test_defect_b13_a_transformers_model_with_activations_is_saved(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.OPTConfig(vocab_size=64, word_embed_proj_dim=32, **sizes)
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path / "float")
    wanted, ids = rquant.RQuantConfig(weights="int8", activations="int8"), torch.arange(12)[None]
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(tmp_path / "float", quantization_config=wanted)
    assert model.model.decoder.layers[0].fc1.activations is rquant.qint8
    model.save_pretrained(tmp_path / "quantized")
    assert torch.equal(load(tmp_path / "quantized")(ids).logits, model(ids).logits)


def test_defect_b14_two_bits_are_kept_up(tmp_path):
    """What quanto is still installed for: int2 weights, at most 2.8 bits each with their scales, multiplied as they are."""
    model, x = nn.Sequential(nn.Linear(384, 256, bias=False)), torch.randn(4, 384)
    rquant.quantize(model, "int2")
    rquant.freeze(model)
    assert sum(t.nbytes for t in model.state_dict().values()) * 8 <= 2.8 * 384 * 256
    assert model[0].held["_panels"].nbytes * 8 <= 2.8 * 384 * 256
    weight = model[0].weight.dequantize()
    assert len(weight[0, :32].unique()) == 4
    torch.testing.assert_close(model(x), x @ weight.T)
    assert rquant.backend_info()["kernels"]["qint2"]
