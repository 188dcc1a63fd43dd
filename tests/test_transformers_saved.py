"""Saved directories: what is in them, and what happens when something is wrong with them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import rquant

transformers = pytest.importorskip("transformers")

from hf_models import ARCHITECTURES, CAUSAL  # noqa: E402

LLAMA = ARCHITECTURES["llama"]
LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture
def directory(tmp_path):
    """A saved int4 model."""
    LLAMA.build().save_pretrained(tmp_path / "float")
    config = rquant.RQuantConfig(weights="int4", group_size=32)
    model = CAUSAL.from_pretrained(tmp_path / "float", quantization_config=config)
    model.save_pretrained(tmp_path / "q")
    return tmp_path / "q"


def change(directory, edit):
    """Rewrite the tensors by `edit`."""
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def change_config(directory, **fields):
    """Rewrite fields of `quantization_config`."""
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"].update(fields)
    (directory / "config.json").write_text(json.dumps(config))


def test_files_hold_plain_canonical_tensors_and_json(directory):
    tensors = load_file(directory / "model.safetensors")
    assert tensors[f"{LAYER}.weight_packed"].shape == (96, 32)
    assert tensors[f"{LAYER}.weight_packed"].dtype == torch.uint8
    assert tensors[f"{LAYER}.weight_scale"].shape == (96, 2)
    assert tensors[f"{LAYER}.weight_scale"].dtype == torch.float16
    assert tensors[f"{LAYER}.weight_zero_point"].dtype == torch.uint8
    assert not any("panels" in name or "like" in name for name in tensors)
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "rquant"
    assert config["weights"] == "qint4"
    assert [entry["group_size"] for entry in config["layers"]] == [32]
    again = rquant.RQuantConfig.from_dict(config)
    assert again.to_dict() == config
    assert repr(again).startswith("RQuantConfig {")


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_zero_point"])
def test_a_missing_tensor_is_named(directory, part):
    change(directory, lambda tensors: tensors.pop(f"{LAYER}.{part}"))
    with pytest.raises(ValueError, match=rf"{LAYER}\.{part}: missing from the checkpoint"):
        CAUSAL.from_pretrained(directory)


def renamed(directory, old, new):
    """Rename tensors in the file and layers in the configuration."""

    def edit(tensors):
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    change(directory, edit)
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    layers = [{**entry, "names": [n.replace(old, new) for n in entry["names"]]} for entry in config["layers"]]
    change_config(directory, layers=layers)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("layers.0.mlp.up_proj", "layers.0.mlp.upward"),
        ("lm_head", "head"),
        ("model.layers", "decoder.layers"),
    ],
)
def test_packed_tensors_that_the_model_has_no_layer_for_are_named(directory, old, new):
    renamed(directory, old, new)
    with pytest.raises(ValueError, match=rf"{new}.*\.weight_packed.*: packed in the checkpoint, but Llama"):
        CAUSAL.from_pretrained(directory)


def test_packed_tensors_that_the_configuration_does_not_list_are_named(directory):
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    layers = [{**entry, "names": [n for n in entry["names"] if n != LAYER]} for entry in config["layers"]]
    change_config(directory, layers=layers)
    with pytest.raises(ValueError, match=rf"{LAYER}\.weight_packed, {LAYER}\.weight_scale.*: packed in the"):
        CAUSAL.from_pretrained(directory)


def test_a_head_that_another_class_lacks_is_passed_over_and_a_body_is_not(directory):
    auto = transformers.AutoModelForSequenceClassification
    assert isinstance(auto.from_pretrained(directory).score, torch.nn.Linear)
    assert not hasattr(transformers.AutoModel.from_pretrained(directory), "lm_head")
    renamed(directory, "0.mlp.up_proj", "0.mlp.upward")
    for other in (auto, transformers.AutoModel):
        with pytest.raises(ValueError, match=r"layers\.0\.mlp\.upward\.weight_packed"):
            other.from_pretrained(directory)


def test_missing_float_columns_of_outliers_are_named(directory, tmp_path):
    model = LLAMA.build()
    rquant.quantize(model, "int8", "int8", outliers=1.0)
    with rquant.record_outliers(model):
        LLAMA.run(model)
    rquant.freeze(model)
    rquant.integrations.transformers.attach(model).save_pretrained(tmp_path / "o")
    change(tmp_path / "o", lambda tensors: tensors.pop(f"{LAYER}.outlier_weight"))
    with pytest.raises(ValueError, match=rf"{LAYER}\.outlier_weight: missing from the checkpoint"):
        CAUSAL.from_pretrained(tmp_path / "o")


def test_a_missing_bias_is_named(tmp_path):
    opt = ARCHITECTURES["opt"]
    opt.build().save_pretrained(tmp_path)
    CAUSAL.from_pretrained(tmp_path, quantization_config=rquant.RQuantConfig()).save_pretrained(
        tmp_path / "q"
    )
    change(tmp_path / "q", lambda tensors: tensors.pop("model.decoder.layers.0.fc1.bias"))
    with pytest.raises(ValueError, match=r"layers\.0\.fc1\.bias: missing from the checkpoint"):
        CAUSAL.from_pretrained(tmp_path / "q")


def test_wrong_shapes_and_values_are_named(directory):
    change(directory, lambda t: t.update({f"{LAYER}.weight_scale": torch.ones(96, 3).half()}))
    with pytest.raises(ValueError, match=rf"{LAYER}\.weight_scale: expected shape \(96, 2\), got \(96, 3\)"):
        CAUSAL.from_pretrained(directory)
    change(directory, lambda t: t.update({f"{LAYER}.weight_scale": torch.full((96, 2), torch.nan).half()}))
    with pytest.raises(ValueError, match=rf"{LAYER}\.weight_scale: expected positive finite.*\[0, 0\]"):
        CAUSAL.from_pretrained(directory)


def test_wrong_configurations_say_so(directory):
    change_config(directory, version=2)
    with pytest.raises(ValueError, match="version: expected 1 or older, got 2"):
        CAUSAL.from_pretrained(directory)
    change_config(directory, version=1, layers=None)
    with pytest.raises(ValueError, match="expected `layers`"):
        CAUSAL.from_pretrained(directory)
    for arguments, message in [
        ({"weights": "int3"}, "weights: expected one of"),
        ({"activations": "int4"}, "activations: expected"),
        ({"group_size": 0}, "group_size: expected"),
        ({"quant_method": "gptq"}, "quant_method: expected 'rquant'"),
    ]:
        with pytest.raises(ValueError, match=message):
            rquant.RQuantConfig(**arguments)
    with pytest.raises(TypeError, match="bits"):
        rquant.RQuantConfig(bits=4)


def test_saved_wins_over_what_is_passed(directory):
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        model = CAUSAL.from_pretrained(directory, quantization_config=rquant.RQuantConfig(weights="int8"))
    assert model.lm_head.scheme.bits == 4
