"""The walk-through from end to end on a small model, and GPT-2's bytes to the last one."""

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for package in ("transformers", "gguf", "gensim", "tqdm", "matplotlib"):
    pytest.importorskip(package, reason="comes with make walkthrough")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import gpt2_sizes  # noqa: E402
import tiny_pretrained  # noqa: E402
import walkthrough  # noqa: E402

MODELS = ["original", "absmax", "zeropoint", "LLM.int8()"]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The model, the folder of pictures and the figures."""
    folder = tmp_path_factory.mktemp("walkthrough")
    model = tiny_pretrained.llama(folder / "model")
    sizes = ["--tokens", "256", "--window", "64", "--length", "40"]
    found = walkthrough.main(["--model", str(folder / "model"), "--out", str(folder / "out"), *sizes])
    return model, folder / "out", found


def test_every_step_leaves_figures_and_pictures(told):
    _, out, found = told
    assert json.loads((out / "figures.json").read_text()) == found
    assert {file.name for file in out.glob("*.png")} == {
        *("weights-absmax.png", "weights-zeropoint.png", "weights-LLMint8.png")
    }
    assert found.keys() == {"bytes", "histograms", "perplexity", "texts"}
    for part in found.values():
        assert list(part) == MODELS


def test_sizes(told):
    model, _, found = told
    count = sum(p.numel() for p in model.parameters())
    assert found["bytes"]["original"] == 4 * count + sum(b.nbytes for b in model.buffers())
    assert count < found["bytes"]["absmax"] < found["bytes"]["zeropoint"] < 1.02 * count
    assert found["bytes"]["LLM.int8()"] < found["bytes"]["original"]


def test_histograms_are_of_the_rounded_weights(told):
    model, _, found = told
    for scheme, quantize in walkthrough.ROUNDINGS.items():
        zeros = sum(int((quantize(p.detach())[1] == 0).sum()) for p in model.parameters())
        assert found["histograms"][scheme]["zeros"] == zeros
    assert found["histograms"]["LLM.int8()"]["count"] == found["histograms"]["original"]["count"]


def test_texts_begin_with_the_prompt_and_differ_by_the_model_alone(told):
    model, _, found = told
    assert all(text.startswith("I have a dream") for text in found["texts"].values())
    again = walkthrough.write(model, tiny_pretrained.tokenizer(), 40)
    assert tiny_pretrained.tokenizer().decode(again[0]) == found["texts"]["original"]


def test_perplexities(told):
    _, _, found = told
    of = found["perplexity"]
    assert of["original"]["own_text"] == of["original"]["original_text"]
    assert (of["original"]["change"], of["original"]["kl"], of["original"]["top1"]) == (0, 0, 1)
    assert "absmax_text" in of["zeropoint"]
    for name in MODELS[1:]:
        assert 0 < of[name]["kl"] < 0.5
        assert abs(of[name]["change"]) < 0.3


def test_gpt2_to_the_byte(capsys):
    """As told: 510,342,192 bytes, then 176,527,896; less the masks, which transformers 5 no longer keeps; and our scales."""
    before, after = gpt2_sizes.main()
    masks = gpt2_sizes.BUFFERS in before
    assert sum(before.values()) == (510_342_192 if masks else 497_759_232)
    scales = after.pop(gpt2_sizes.SCALES)
    assert sum(after.values()) == (176_527_896 if masks else 163_944_960)
    assert after[gpt2_sizes.CODES] == 84_934_656
    assert scales == 12 * (2304 + 768 + 3072 + 768) * 4
    assert "176,527,896" in capsys.readouterr().out
