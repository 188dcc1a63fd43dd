"""What a moving average takes for a batch: all that a layer sees in one call of the model."""

import copy

import pytest
import torch
from observed import METHODS
from torch import nn

import rquant
from rquant import observers
from rquant.compat import torch_ao
from rquant.nn.static import static_qparams


class Joined(nn.Module):
    """Branches of unlike ranges side by side, and a layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.small, self.large, self.last = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(18, 3)
        self.large.weight.data *= 20

    def forward(self, x):
        inner = torch.cat([self.small(x).relu(), self.large(x)], -1)
        return self.last(torch.cat([self.small(x), inner], -1))


DATA = torch.randn(6, 32, 8, generator=torch.Generator().manual_seed(0)).unbind()


def quantized():
    torch.manual_seed(0)
    model = Joined().eval()
    rquant.quantize(model, activations="int8")
    return model


def scale_of(observer, model):
    """Of what the last layer reads, by an observer of the whole."""
    with torch.no_grad():
        for x in DATA:
            weights = (layer.dequantize() for layer in (model.small, model.large))
            biases = (layer.bias for layer in (model.small, model.large))
            small, large = (nn.functional.linear(x, *both) for both in zip(weights, biases, strict=True))
            observer.update(torch.cat([small, small.relu(), large], -1))
    return static_qparams(*observer.range())[0]


class Own(observers.MovingAverage):
    """A user's: it is told of the whole, as of any other input."""


@pytest.mark.parametrize("method", [*METHODS, lambda: observers.MovingAverage(0.3), Own])
def test_parts_of_a_concatenation(method):
    model = quantized()
    with rquant.Calibration(method):
        for x in DATA:
            model(x)
    want = scale_of(observers.observer_of(method), model)
    assert model.last.input_scale.item() == pytest.approx(
        want, rel=1e-3 if method != "cross_entropy" else 0.2
    )


def test_parts_of_a_model_called_by_themselves_are_batches_of_their_own():
    model = quantized()
    with rquant.Calibration("moving_average", momentum=0.5) as calibration:
        for x in DATA:
            model.small(x)
    [tensor] = calibration.statistics.tensors.values()
    assert tensor.average.batches == len(DATA)


def test_torch_aos_constant():
    model = Joined().eval()
    observer = torch_ao.MovingAverageMinMaxObserver.with_args(averaging_constant=0.5)
    model.qconfig = torch_ao.QConfig(observer, torch_ao.default_per_channel_weight_observer)
    prepared = torch_ao.prepare(model)
    weights = copy.deepcopy(prepared)
    for x in DATA:
        prepared(x)
    want = scale_of(observers.MovingAverage(0.5), weights)
    assert prepared.last.input_scale.item() == pytest.approx(want, rel=1e-3)


def test_steps_of_a_recurrent_layer():
    """The first step's state is 0: averaged as a batch of its own it would clip all others."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.LSTM(8, 16, batch_first=True)), torch.randn(4, 9, 8)
    want = model(x)[0]
    errors = {}
    for method in ("minmax", "moving_average"):
        static = copy.deepcopy(model)
        rquant.quantize(static, activations="int8")
        rquant.calibrate(static, [x], method=method)
        errors[method] = ((static(x)[0] - want).norm() / want.norm()).item()
    assert errors["moving_average"] == errors["minmax"] < 0.02
