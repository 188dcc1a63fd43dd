"""RQuantConfig beyond bits: optimizers, outliers, casts and float8 activations, on load and after save and reload."""

import copy
import json

import pytest
import torch

import rquant

transformers = pytest.importorskip("transformers")

from hf_models import ARCHITECTURES  # noqa: E402

CONFIGS = {
    "hqq": {"weights": "int4", "optimizer": "hqq"},
    "mse": {"weights": "int2", "optimizer": "mse"},
    "absmax": {"weights": "int4", "group_size": 16, "optimizer": "absmax"},
    "outliers": {"activations": "int8", "outliers": 1.5},
    "outliers and hqq": {"weights": "int4", "activations": "int8", "outliers": 1.5, "optimizer": "hqq"},
    "float16": {"weights": "float16"},
    "bfloat16": {"weights": "bfloat16"},
    "float8 activations": {"weights": "float8_e5m2", "activations": "float8"},
    "rules": {"weights": "int8", "rules": [("*mlp*", {"weights": "int4", "optimizer": "hqq"})]},
}


@pytest.fixture(scope="module", params=["llama", "gpt2"])  # Linear and Conv1D
def saved(request, tmp_path_factory):
    """An architecture, its float model, and where that is saved."""
    architecture = ARCHITECTURES[request.param]
    model = architecture.build()
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    return architecture, model, path


def saved_and_reloaded(architecture, model, path):
    model.save_pretrained(path)
    reloaded = architecture.auto.from_pretrained(path)
    assert torch.equal(architecture.run(reloaded), architecture.run(model))
    return reloaded


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_model_quantized_in_memory(name, saved, tmp_path):
    architecture, model, path = saved
    quantized = copy.deepcopy(model)
    rquant.quantize(quantized, **CONFIGS[name])
    rquant.freeze(quantized)
    outputs = architecture.run(quantized)
    config = rquant.RQuantConfig(**CONFIGS[name])
    loaded = architecture.auto.from_pretrained(path, quantization_config=config)
    assert torch.equal(architecture.run(loaded), outputs)
    reloaded = saved_and_reloaded(architecture, loaded, tmp_path)
    assert reloaded.num_parameters() == model.num_parameters()
    written = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    for field in ("optimizer", "outliers"):
        assert written.get(field) == getattr(config, field)
        assert getattr(reloaded.hf_quantizer.quantization_config, field) == getattr(config, field)
    kinds = {(str(m.scheme), str(getattr(m, "outliers", None))) for m in loaded.modules() if is_packed(m)}
    assert kinds == {
        (str(m.scheme), str(getattr(m, "outliers", None))) for m in reloaded.modules() if is_packed(m)
    }
    assert kinds == {
        (str(m.scheme), str(getattr(m, "outliers", None))) for m in quantized.modules() if is_packed(m)
    }


def is_packed(module):
    return isinstance(module, rquant.nn.PackedWeight)


def test_outlier_columns_fixed_after_loading_are_saved(saved, tmp_path):
    architecture, _, path = saved
    config = rquant.RQuantConfig(activations="int8", outliers=1.5)
    model = architecture.auto.from_pretrained(path, quantization_config=config)
    with rquant.record_outliers(model):
        architecture.run(model)
    fixed = {n: m.outliers for n, m in model.named_modules() if isinstance(m, rquant.Linear)}
    assert all(isinstance(columns, tuple) for columns in fixed.values())
    assert any(fixed.values())
    reloaded = saved_and_reloaded(architecture, model, tmp_path)
    assert {n: m.outliers for n, m in reloaded.named_modules() if isinstance(m, rquant.Linear)} == fixed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "best"}, "optimizer: expected 'minmax'"),
        ({"optimizer": rquant.optimize.HQQ(), "weights": "int4"}, "optimizer: expected a name"),
        ({"optimizer": "hqq", "weights": "int8"}, "optimizer: expected symmetric=False"),
        ({"outliers": 6.0}, "outliers: expected None without activations"),
        ({"outliers": -1.0, "activations": "int8"}, "outliers: expected a finite threshold"),
    ],
)
def test_what_cannot_be_is_said_before_anything_loads(arguments, message):
    with pytest.raises(ValueError, match=message):
        rquant.RQuantConfig(**arguments)
