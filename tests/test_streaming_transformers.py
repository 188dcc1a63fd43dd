"""What `rquant quantize` makes of a directory, loaded by transformers: the logits are those of quantizing on load."""

import os

import pytest
import torch

import rquant
from rquant.scheme import Scheme
from rquant.streaming import Wish, quantize_checkpoint

transformers = pytest.importorskip("transformers")
if not hasattr(rquant, "RQuantConfig"):
    pytest.skip("rquant.RQuantConfig is not there", allow_module_level=True)

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
}
CONFIGS = {
    "llama": {**SMALL, "tie_word_embeddings": False},
    "llama tied": {**SMALL, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 200},
    "mixtral": {**SMALL, "num_local_experts": 4, "tie_word_embeddings": False},
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest.mark.parametrize(
    ("name", "shard"), [(name, "5GB" if name == "llama" else "60KB") for name in CONFIGS]
)
@pytest.mark.parametrize("include", [(), ("*",)], ids=["default", "embeddings"])
def test_transformers_loads_the_directory(name, include, shard, tmp_path):
    config = transformers.AutoConfig.for_model(name.split()[0], **CONFIGS[name])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "in", max_shard_size=shard)
    made = quantize_checkpoint(
        tmp_path / "in", tmp_path / "out", Wish(Scheme.resolve("int4"), include=include)
    )
    assert ("model.safetensors" in os.listdir(tmp_path / "out")) == (shard == "5GB")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    packed = [n for n, m in loaded.named_modules() if isinstance(m, rquant.Linear | rquant.Embedding)]
    assert set(made.quantized) <= set(packed)
    tied = {"lm_head"} if include and config.tie_word_embeddings else set()
    assert set(packed) - set(made.quantized) == tied
    rest = {m for m, _ in model.named_modules()} - set(packed)
    if name != "mixtral":  # whose experts are matrices on disk and one tensor in memory
        kept = [n for n in sorted(rest) if hasattr(model.get_submodule(n), "weight")]
        rquant.quantize(model, "int4", include=packed, exclude=kept or None)
        rquant.freeze(model)
        ids = torch.arange(12)[None]
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        skeleton = transformers.AutoModelForCausalLM.from_config(config).eval()
        assert torch.equal(rquant.load(tmp_path / "out", skeleton)(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    "how",
    [{"weights": "int4", "optimizer": "hqq"}, {"weights": "int2", "optimizer": "mse"}, {"weights": "float8"},
     {"weights": "bfloat16"}],
    ids=lambda how: "-".join(how.values()),
)  # fmt: skip
def test_every_kind_of_weight_is_what_quantizing_on_load_gives(how, tmp_path):
    config = transformers.AutoConfig.for_model("llama", **CONFIGS["llama"])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "in")
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", Wish(Scheme.resolve(**how)))
    ids = torch.arange(12)[None]
    wanted = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "in", quantization_config=rquant.RQuantConfig(**how)
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded(ids).logits, wanted(ids).logits)
    assert loaded.lm_head.scheme == wanted.lm_head.scheme
