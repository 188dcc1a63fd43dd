"""`recommend`: the mode that the kind of net asks for, steps that run, and bytes that come true."""

import pytest
import torch
from torch import nn

import rquant
from rquant.recommendation import SMALL


def convnet(width=64):
    layers = (
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 4 * width, 3),
        nn.ReLU(),
    )
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


class Vgg(nn.Sequential):
    """Most weights are in linear layers, most multiplications in convolutions."""

    def __init__(self):
        convs = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.Flatten()]
        linears = [nn.Linear(64 * 16 * 16, 32), nn.Linear(32, 32), nn.Linear(32, 10), nn.Linear(10, 10)]
        super().__init__(*convs, *linears)


def language_model():
    return nn.Sequential(
        nn.Embedding(1000, 64), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64), nn.Linear(64, 1000)
    )


IMAGE, TOKENS = torch.randn(2, 3, 16, 16), torch.randint(0, 1000, (1, 7))
CASES = {
    "transformer": (
        lambda: nn.TransformerEncoderLayer(64, 4, 1024, batch_first=True),
        torch.randn(2, 9, 64),
        "dynamic",
    ),
    "recurrent": (lambda: nn.LSTM(128, 128), torch.randn(5, 2, 128), "dynamic"),
    "perceptron": (
        lambda: nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10)),
        torch.randn(2, 256),
        "dynamic",
    ),
    "convolutional": (convnet, IMAGE, "static"),
    "heavy head": (Vgg, IMAGE, "static"),
    "small": (lambda: convnet(8), IMAGE, "qat"),
    "language": (language_model, TOKENS, "weight-only"),
}


@pytest.mark.parametrize(("build", "sample", "mode"), CASES.values(), ids=CASES)
def test_mode(build, sample, mode):
    model = build()
    training, state = model.training, {k: v.clone() for k, v in model.state_dict().items()}
    found = rquant.recommend(model, sample)
    assert found.mode == mode
    assert found.mode in str(found)
    assert found.why in str(found)
    assert found.bytes_after < found.bytes_before
    assert model.training == training
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_sample_tells_what_counting_layers_does_not():
    model = Vgg()
    assert rquant.recommend(model).mode == "dynamic"  # four of six layers are linear
    assert rquant.recommend(model, IMAGE).mode == "static"


@pytest.mark.parametrize("name", CASES)
def test_steps_run_and_bytes_come_true(name):
    build, sample, _ = CASES[name]
    model = build()
    found = rquant.recommend(model, sample)
    report = rquant.quantize(build(), **found.arguments)
    assert (found.bytes_before, found.bytes_after) == (report.bytes_before, report.bytes_after)
    names = {
        "rquant": rquant,
        "model": model,
        "sample": sample,
        "samples": [sample] * 3,
        "train": lambda model: None,
    }
    exec(found.steps, names)
    layers = [m for m in model.modules() if isinstance(m, rquant.nn.PackedWeight)]
    assert layers
    assert all(layer.frozen for layer in layers)
    model.eval()(sample)


def test_few_weights_are_trained_for():
    build = lambda n: nn.Linear(100, n)  # noqa: E731
    assert rquant.recommend(build(SMALL // 100 - 1)).mode == "qat"
    assert rquant.recommend(build(SMALL // 100 + 1)).mode == "dynamic"


def test_depthwise_layers_are_told_of():
    model = nn.Sequential(nn.Conv2d(256, 256, 3, groups=256), nn.Conv2d(256, 512, 1))
    assert "1 depthwise" in rquant.recommend(model, torch.randn(1, 256, 8, 8)).why


def test_nothing_to_quantize():
    found = rquant.recommend(nn.Sequential(nn.ReLU(), nn.LayerNorm(4)))
    assert (found.mode, found.arguments, found.steps) == ("float", {}, "")
    assert found.bytes_after == found.bytes_before
    assert "no linear" in str(found)


def test_what_cannot_be_quantized_does_not_count():
    video = nn.Sequential(nn.Conv3d(8, 64, 3), nn.Conv3d(64, 128, 3), nn.Flatten(2), nn.Linear(125, 1024))
    sample = torch.randn(1, 8, 9, 9, 9)
    assert rquant.recommend(video, sample).mode == "dynamic"  # for the linear layer's sake
    found = rquant.recommend(video[:3], sample)
    assert (found.mode, found.steps) == ("float", "")
    assert "Conv3d: no quantized form" in found.why
    model = nn.Sequential(nn.Linear(512, 512))
    rquant.quantize(model)
    found = rquant.recommend(model)
    assert (found.mode, found.why) == (
        "float",
        "none of its layers can be quantized, Linear: quantized before",
    )


def test_transformers_say_whether_they_generate():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = torch.randint(0, 300, (1, 5))
    masked = transformers.BertForMaskedLM(transformers.BertConfig(**sizes, intermediate_size=256))
    causal = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, intermediate_size=256))
    assert rquant.recommend(masked, input_ids=ids).mode == "dynamic"
    assert rquant.recommend(causal, input_ids=ids).mode == "weight-only"
