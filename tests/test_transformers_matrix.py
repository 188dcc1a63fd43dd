"""Every architecture and weight type through transformers: quantized while loading, saved, reloaded whole and in shards."""

import copy
from pathlib import Path

import pytest
import torch

import rquant

transformers = pytest.importorskip("transformers")

from hf_models import ARCHITECTURES  # noqa: E402
from safetensors import safe_open  # noqa: E402

from rquant.nn import PackedWeight  # noqa: E402

LEAST_COSINE = {"int8": 0.99, "int4": 0.9, "int2": 0.0, "float8": 0.99}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def saved(request, tmp_path_factory):
    """An architecture, its float model, and the checkpoint that `save_pretrained` wrote of it."""
    architecture = ARCHITECTURES[request.param]
    model = architecture.build()
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path, max_shard_size="40KB")
    return architecture, model, path


def names_in(path: Path) -> dict[str, str]:
    """Tensor name -> file, over all shards."""
    found = {}
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), file.name)
    return found


@pytest.mark.parametrize("weights", LEAST_COSINE)
def test_on_load_saved_reloaded_and_sharded(saved, weights, tmp_path):
    architecture, model, path = saved
    floats = architecture.run(model)
    config = rquant.RQuantConfig(weights=weights)
    loaded, info = architecture.auto.from_pretrained(
        path, quantization_config=config, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    outputs = architecture.run(loaded)

    # the same model as one quantized in memory, so nothing was lost or left out on the way
    quantized = copy.deepcopy(model)
    rquant.quantize(quantized, weights)
    rquant.freeze(quantized)
    assert torch.equal(outputs, architecture.run(quantized))
    assert loaded.num_parameters() == model.num_parameters()
    cosine = torch.cosine_similarity(floats.flatten(), outputs.flatten(), 0).item()
    assert cosine >= LEAST_COSINE[weights]
    assert any(isinstance(m, PackedWeight) for m in loaded.modules())
    assert all(m.frozen for m in loaded.modules() if isinstance(m, PackedWeight))

    for size in ("5GB", "6KB"):
        place = tmp_path / size
        loaded.save_pretrained(place, max_shard_size=size)
        assert (len(set(names_in(place).values())) > 1) == (size == "6KB")
        reloaded, info = architecture.auto.from_pretrained(place, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert torch.equal(architecture.run(reloaded), outputs)
        assert reloaded.state_dict().keys() == loaded.state_dict().keys()
    assert torch.equal(architecture.run(copy.deepcopy(reloaded)), outputs)


@pytest.mark.parametrize("activations", [None, "int8"])
def test_defect_b13(activations, tmp_path):
    """Activations are quantized through transformers too, and such a model is saved and loaded."""
    architecture = ARCHITECTURES["llama"]
    floats = architecture.build()
    floats.save_pretrained(tmp_path)
    config = rquant.RQuantConfig(weights="int8", activations=activations)
    model = architecture.auto.from_pretrained(tmp_path, quantization_config=config)
    assert model.hf_quantizer.is_serializable()
    assert (model.lm_head.activations is rquant.qint8) == (activations == "int8")
    outputs = architecture.run(model)
    assert torch.cosine_similarity(architecture.run(floats).flatten(), outputs.flatten(), 0) >= 0.99
    model.save_pretrained(tmp_path / "q")
    reloaded = architecture.auto.from_pretrained(tmp_path / "q")
    assert reloaded.lm_head.activations is model.lm_head.activations
    assert torch.equal(architecture.run(reloaded), outputs)
