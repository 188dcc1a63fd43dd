"""from_pretrained with RQuantConfig: what is chosen, ties, dtypes, devices, heads that the checkpoint lacks, bad weights."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import rquant

transformers = pytest.importorskip("transformers")

from hf_models import ARCHITECTURES, CAUSAL, llama  # noqa: E402
from transformers import AutoModel, AutoModelForSequenceClassification  # noqa: E402

LLAMA, BERT, T5 = ARCHITECTURES["llama"], ARCHITECTURES["bert"], ARCHITECTURES["t5"]


def saved(model, path):
    """The path of the checkpoint of a float model."""
    model.save_pretrained(path)
    return path


def load(path, auto=CAUSAL, dtype=None, **config):
    """A model quantized while it loads."""
    more = {} if dtype is None else {"dtype": dtype}
    return auto.from_pretrained(path, quantization_config=rquant.RQuantConfig(**config), **more)


def packed(model):
    """Names of the quantized modules."""
    return {name for name, module in model.named_modules() if isinstance(module, rquant.nn.PackedWeight)}


def test_what_stays_float_is_chosen_by_name_or_glob(tmp_path):
    path = saved(LLAMA.build(), tmp_path)
    everything = packed(load(path))
    assert {"lm_head", "model.layers.1.mlp.down_proj"} <= everything
    assert packed(load(path, modules_to_not_convert=["lm_head", "down_proj", "not_there"])) == {
        name for name in everything if name != "lm_head" and "down_proj" not in name
    }
    assert packed(load(path, modules_to_not_convert=["model.layers.0"])) == {
        name for name in everything if "layers.0." not in name
    }
    assert packed(load(path, exclude="*.1.*")) == {name for name in everything if "layers.1." not in name}
    assert packed(load(path, include=["model.embed_tokens"])) == {"model.embed_tokens"}
    with pytest.raises(ValueError, match=r"exclude.*lm_haed"):
        load(path, exclude="lm_haed")


def test_rules_are_kept_as_json(tmp_path):
    path = saved(LLAMA.build(), tmp_path)
    rules = [
        (re.compile(r"model\.layers\.0\..*"), {"weights": rquant.qint8, "activations": rquant.qint8}),
        ("lm_head", None),
        (torch.nn.Embedding, "int2"),
    ]
    model = load(path, weights="int4", rules=rules)
    assert model.model.layers[0].mlp.up_proj.activations is rquant.qint8
    assert model.model.embed_tokens.scheme.bits == 2
    assert model.model.layers[1].mlp.up_proj.scheme.bits == 4
    assert "lm_head" not in packed(model)
    model.save_pretrained(tmp_path / "q")
    written = json.loads((tmp_path / "q/config.json").read_text())["quantization_config"]["rules"]
    assert written[0] == ["re:model\\.layers\\.0\\..*", {"weights": "qint8", "activations": "qint8"}]
    assert torch.equal(LLAMA.run(CAUSAL.from_pretrained(tmp_path / "q")), LLAMA.run(model))


def test_the_report_tells_what_happened_and_large_floats_are_told_loudly(tmp_path, transformers_log):
    path = saved(LLAMA.build(), tmp_path)
    model = load(path, weights="int4")
    assert {row.name for row in model.hf_quantizer.report.quantized} == packed(model)
    assert "model.embed_tokens (Embedding): 24,576 bytes" in transformers_log.text


@pytest.mark.parametrize("both", ["first", "equal", "different"])
def test_tied_weights_are_one_unless_the_checkpoint_says_otherwise(both, tmp_path):
    model = CAUSAL.from_config(llama(tie_word_embeddings=True)).eval()
    path = saved(model, tmp_path)
    if both != "first":
        tensors = load_file(path / "model.safetensors")
        change = 1.0 if both == "equal" else 2.0
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * change
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    loaded = load(path, weights="int4")
    head, embed = loaded.lm_head.dequantize(), loaded.model.embed_tokens.dequantize()
    if both == "different" and transformers.__version__.startswith("5"):  # 4.57 ties whatever the file says
        assert not torch.equal(head, embed)
    else:
        assert loaded.lm_head.held["_panels"] is loaded.model.embed_tokens.held["_panels"]
    loaded.tie_weights()  # as resizing the vocabulary does
    outputs = LLAMA.run(loaded)
    loaded.save_pretrained(tmp_path / "q")
    reloaded = CAUSAL.from_pretrained(tmp_path / "q")
    assert torch.equal(LLAMA.run(reloaded), outputs)


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_half_precision_models_come_back_equal(name, dtype, weights, tmp_path):
    """T5 keeps `wo` in float32 under float16; scales are of the file's dtype, not of the model's."""
    architecture = ARCHITECTURES[name]
    path = saved(architecture.build(), tmp_path)
    model = load(path, architecture.auto, dtype, weights=weights)
    assert model.dtype == dtype
    outputs = architecture.run(model)
    model.save_pretrained(tmp_path / "q")
    reloaded = architecture.auto.from_pretrained(tmp_path / "q", dtype=dtype)
    assert torch.equal(architecture.run(reloaded), outputs)
    for (_, a), (_, b) in zip(model.named_parameters(), reloaded.named_parameters(), strict=True):
        assert a.dtype == b.dtype
    if name == "t5":
        wo = reloaded.decoder.block[0].layer[-1].DenseReluDense.wo
        assert wo.weight.dtype == (torch.float32 if dtype == torch.float16 else dtype)


def test_scales_too_wide_for_float16_come_back(tmp_path):
    model = LLAMA.build()
    model.lm_head.weight.data *= 1e7
    path = saved(model, tmp_path)
    loaded = load(path, weights="int4")
    assert loaded.lm_head.canonical().scale.dtype == torch.float32
    loaded.save_pretrained(tmp_path / "q")
    assert torch.equal(LLAMA.run(CAUSAL.from_pretrained(tmp_path / "q")), LLAMA.run(loaded))


def test_device_maps(tmp_path):
    path = saved(LLAMA.build(), tmp_path)
    outputs = LLAMA.run(load(path))
    for place in ("cpu", {"": "cpu"}, "auto"):
        config = rquant.RQuantConfig()
        model = CAUSAL.from_pretrained(path, quantization_config=config, device_map=place)
        assert torch.equal(LLAMA.run(model), outputs)
        model.save_pretrained(tmp_path / "q")
        reloaded = CAUSAL.from_pretrained(tmp_path / "q", device_map=place)
        assert torch.equal(LLAMA.run(reloaded), outputs)
    for place in ({"model": "cpu", "lm_head": "disk"}, {"model": 0, "lm_head": "cpu"}):
        with pytest.raises(ValueError, match="device_map: expected one device"):
            CAUSAL.from_pretrained(path, quantization_config=rquant.RQuantConfig(), device_map=place)


def test_a_head_that_the_checkpoint_lacks_is_initialized_and_quantized(tmp_path):
    path = saved(BERT.build(), tmp_path)
    model = load(path, AutoModelForSequenceClassification, weights="int4")
    assert model.classifier.frozen
    assert 0 < model.classifier.dequantize().abs().max() < 0.2
    assert torch.equal(model.classifier.bias, torch.zeros(2))
    body = copy.deepcopy(BERT.build().bert.encoder)
    rquant.quantize(body, "int4")
    rquant.freeze(body)
    ours, theirs = model.bert.encoder.state_dict(), body.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_bias_that_the_checkpoint_lacks_is_zero(tmp_path):
    opt = ARCHITECTURES["opt"]
    path = saved(opt.build(), tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensors = {name: tensor + 1 for name, tensor in tensors.items() if not name.endswith("layers.0.fc1.bias")}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    layers = load(path).model.decoder.layers
    assert torch.equal(layers[0].fc1.bias, torch.zeros(64))
    assert torch.equal(layers[1].fc1.bias, torch.ones(64))


def test_a_bad_weight_is_named(tmp_path):
    model = LLAMA.build()
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = torch.nan
    path = saved(model, tmp_path)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*\[3, 5\]"):
        load(path)


def test_conv1d_is_read_transposed_and_given_back(tmp_path):
    gpt2 = ARCHITECTURES["gpt2"]
    model = gpt2.build()
    loaded = load(saved(model, tmp_path), weights="int8")
    layer = loaded.transformer.h[0].attn.c_attn
    assert layer.weight.shape == (96, 32)
    assert (layer.dequantize() - model.transformer.h[0].attn.c_attn.weight.T).abs().max() < 1e-3
    outputs = gpt2.run(loaded)
    floats = loaded.dequantize()
    assert type(floats.transformer.h[0].attn.c_attn).__name__ == "Conv1D"
    assert not packed(floats)
    torch.testing.assert_close(gpt2.run(floats), outputs, atol=1e-5, rtol=1e-4)
    floats.save_pretrained(tmp_path / "float")
    assert torch.equal(gpt2.run(CAUSAL.from_pretrained(tmp_path / "float")), gpt2.run(floats))
    assert floats.num_parameters() == model.num_parameters()


def test_the_inner_model_alone(tmp_path):
    """An embedding that was packed because of its head stays packed without it."""
    model = CAUSAL.from_config(llama(tie_word_embeddings=True)).eval()
    whole = load(saved(model, tmp_path), weights="int4")
    whole.save_pretrained(tmp_path / "q")
    inner = AutoModel.from_pretrained(tmp_path / "q")
    assert packed(inner) == {name.removeprefix("model.") for name in packed(whole) - {"lm_head"}}
    inputs = LLAMA.inputs()
    with torch.inference_mode():
        expected = whole.model(**inputs).last_hidden_state
        assert torch.equal(inner(**inputs).last_hidden_state, expected)
    inner.save_pretrained(tmp_path / "inner")
    outer = CAUSAL.from_pretrained(tmp_path / "inner")
    with torch.inference_mode():
        assert torch.equal(outer.model(**inputs).last_hidden_state, expected)


def test_a_model_quantized_in_memory_is_saved_too(tmp_path):
    from rquant.integrations.transformers import attach

    model = LLAMA.build()
    rquant.quantize(model, "int8", "int8", exclude="lm_head")
    rquant.quantize(model, "int4", include="lm_head")
    rquant.freeze(model)
    attach(model).save_pretrained(tmp_path)
    layers = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["layers"]
    assert {entry["weights"] for entry in layers} == {"qint8", "qint4"}
    assert torch.equal(LLAMA.run(CAUSAL.from_pretrained(tmp_path)), LLAMA.run(model))


def test_a_trainable_layer_is_not_saved(tmp_path):
    from rquant.integrations.transformers import attach

    model = LLAMA.build()
    rquant.quantize(model, "int8")
    with pytest.raises(ValueError, match=r"q_proj: expected a frozen layer"):
        attach(model).save_pretrained(tmp_path)


def test_modules_that_are_taken_apart(tmp_path):
    """Attention and, in transformers 5, experts are whole in the checkpoint; a bad part of them is named."""
    architecture = ARCHITECTURES["mixtral"]
    model = architecture.build()
    loaded = load(saved(model, tmp_path / "float"), weights="int4")
    experts = loaded.model.layers[0].mlp.experts if hasattr(loaded.model.layers[0], "mlp") else None
    if not isinstance(experts, rquant.nn.Experts):
        pytest.skip("this transformers holds experts one by one")
    assert not any(p.numel() for p in experts.parameters())
    with pytest.raises(ValueError, match="expected layers of one weight, got Experts"):
        loaded.dequantize()
    model.model.layers[1].mlp.experts.down_proj.data[2, 5, 7] = torch.inf
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.experts\.down_proj\.2\.weight.*\[5, 7\]"):
        load(saved(model, tmp_path / "bad"))
    excluded = load(tmp_path / "float", exclude="*experts*")
    assert excluded.model.layers[0].mlp.experts.down_proj.dim() == 3
    excluded.save_pretrained(tmp_path / "q")
    assert torch.equal(architecture.run(CAUSAL.from_pretrained(tmp_path / "q")), architecture.run(excluded))
