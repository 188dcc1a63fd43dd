"""`prepare_qat`: torch.ao's training loop, and what it deploys."""

import copy
import warnings

import pytest
import torch
from torch import nn

import rquant
from rquant.compat import torch_ao
from rquant.compat.torch_ao import (
    convert,
    get_default_qat_qconfig,
    get_default_qat_qconfig_mapping,
    prepare_qat,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ao = pytest.importorskip("torch.ao.quantization")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
X = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = X.mean((1, 3)).argmax(1)  # which row is brightest


def build():
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d((1, 8)))
    return nn.Sequential(
        torch_ao.QuantStub(), *layers, nn.Flatten(), nn.Linear(64, 8), torch_ao.DeQuantStub()
    )


def train(model, optimizer, epochs):
    for _ in range(epochs):
        for x, y in zip(X.split(32), Y.split(32), strict=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
    return loss.item()


@pytest.mark.parametrize("how", ["eager", "eager, torch's qconfig", "fx"])
def test_the_loop_learns_and_what_it_deploys_is_the_same(how):
    model = build()
    if how == "fx":
        prepared = torch_ao.prepare_qat_fx(model, get_default_qat_qconfig_mapping(), (X[:1],))
    else:
        model.qconfig = get_default_qat_qconfig() if how == "eager" else ao.get_default_qat_qconfig("x86")
        prepared = prepare_qat(model)
    optimizer = torch.optim.AdamW(
        prepared.parameters(), 0.01
    )  # before the first batch, as the tutorial has it
    before = train(prepared, optimizer, 1)
    norm = prepared[1].batch_norm.norm
    gamma, mean = norm.weight.detach().clone(), norm.running_mean.clone()
    after = train(prepared, optimizer, 5)
    assert after < before
    assert not torch.equal(norm.weight, gamma)  # the optimizer has it still
    assert not torch.equal(norm.running_mean, mean)
    with torch.no_grad():
        want = prepared.eval()(X)
        converted = convert(prepared)
        assert torch.equal(converted(X), want)
    assert (want.argmax(1) == Y).float().mean() > 0.5
    assert converted[1].frozen
    assert type(converted[2]) is type(converted[0]) is nn.Identity
    assert not any(m._forward_pre_hooks for m in converted.modules())
    assert type(model[1]) is nn.Conv2d


def test_observers_and_statistics_can_be_frozen():
    model = build()
    model.qconfig = get_default_qat_qconfig()
    prepared = prepare_qat(model, inplace=True)
    assert prepared is model
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    train(prepared, optimizer, 1)
    prepared.apply(torch_ao.disable_observer).apply(torch_ao.freeze_bn_stats)
    layer = prepared[1]
    scale, mean = layer.input_range.scale.clone(), layer.batch_norm.norm.running_mean.clone()
    for _ in range(2):
        prepared(100 * X)
    assert torch.equal(layer.input_range.scale, scale)
    assert torch.equal(layer.batch_norm.norm.running_mean, mean)
    prepared.apply(torch_ao.enable_observer)
    prepared(100 * X)
    assert layer.input_range.scale > scale


def test_copies_before_and_after_the_first_batch():
    model = build()
    model.qconfig = get_default_qat_qconfig()
    first = copy.deepcopy(prepare_qat(model))
    first(X)
    second = copy.deepcopy(first)
    assert torch.equal(convert(first)(X), convert(second)(X))


def test_wrong_calls():
    with pytest.raises(ValueError, match="mapping: expected None"):
        prepare_qat(build(), mapping={})
    with pytest.raises(ValueError, match="model: expected a qconfig"):
        prepare_qat(build())
    model = build()
    model.qconfig = get_default_qat_qconfig()
    with pytest.raises(ValueError, match="called on samples, got one that was not"):
        convert(prepare_qat(model))
    assert not any(isinstance(m, rquant.nn.PackedWeight) for m in model.modules())
