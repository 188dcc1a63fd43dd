"""Codes of tensors whose dimensions of one element have strides that say nothing."""

import pytest
import torch
from torch import nn

import rquant

ONE = {
    "sequence first": lambda: torch.randn(10, 1, 8).transpose(0, 1),
    "batch first": lambda: torch.randn(1, 10, 8).transpose(0, 1),
    "a row": lambda: torch.randn(8, 1).t(),
    "a slice": lambda: torch.randn(4, 10, 8)[:1].transpose(0, 1),
    "any strides": lambda: torch.empty_strided((10, 1, 8), (8, 99, 1)).normal_(),
    "one of one": lambda: torch.empty_strided((1, 1, 8), (3, 7, 1)).normal_(),
    "interleaved": lambda: torch.randn(8, 3).t(),
    "interleaved, one": lambda: torch.empty_strided((3, 1, 8), (1, 1, 3)).normal_(),
}


@pytest.mark.parametrize("make", ONE.values(), ids=ONE)
def test_a_calibrated_layer_takes_them(make):
    torch.manual_seed(0)
    x = make()
    layer = nn.Sequential(nn.Linear(x.shape[-1], 4)).eval()
    rquant.quantize(layer, activations="int8")
    rquant.calibrate(layer, [torch.randn(64, x.shape[-1])])
    with torch.no_grad():
        plain = torch.empty(x.shape).copy_(x)
        assert torch.equal(layer(x), layer(plain))
        bad = x.clone()
        bad[0] = torch.nan
        assert layer(bad).isnan().flatten(1).all(1).tolist() == [True] + [False] * (len(x) - 1)


def test_an_lstm_of_one_sequence():
    torch.manual_seed(0)
    model = nn.LSTM(4, 8, batch_first=True).eval()
    holder = nn.ModuleList([model])
    x = torch.randn(3, 5, 4)
    rquant.quantize(holder, activations="int8")
    with rquant.Calibration("minmax"):
        holder[0](x)
    with torch.no_grad():
        assert torch.equal(holder[0](x[:1])[0], holder[0](x)[0][:1])
