"""NaN in a sample comes out of what was computed of that sample, wherever it went."""

import pytest
import torch
from torch import nn

import rquant


@pytest.fixture(scope="module")
def layers():
    """Two calibrated convolutions of 8 channels, of which the first gives activations."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)).eval()
    rquant.quantize(net, activations="int8")
    rquant.calibrate(net, [torch.randn(8, 8, 6, 6)])
    rquant.freeze(net)
    return net


BETWEEN = {
    "flip of samples": lambda y: y.flip(0),
    "flip of samples, by name": lambda y: torch.flip(y, dims=[0, 1]),
    "flip of rows": lambda y: y.flip(2, 3),
    "as many channels as samples": lambda y: y.transpose(0, 1),
    "movedim": lambda y: y.movedim(1, 0),
    "a view": lambda y: y.reshape(8, 4, 2, 36).reshape(8, 8, 6, 6),
    "a copy": lambda y: y.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2).reshape(8, 8, 6, 6),
    "some of them": lambda y: y[2:],
    "unflattened": lambda y: y.unflatten(0, (2, 4)).transpose(0, 1).flatten(0, 1),
}


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("bad", [0, 3])
@torch.no_grad()
def test_nan_is_where_it_went(layers, name, bad):
    x = torch.randn(8, 8, 6, 6, generator=torch.Generator().manual_seed(1))
    x[bad, 1, 2, 3] = torch.nan
    first, second = layers
    out = second(BETWEEN[name](first(x))).float()
    went = BETWEEN[name](torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 8, 6, 6)) == bad
    told = out.isnan().flatten(1).any(1)
    assert (told | ~went.flatten(1).any(1)).all()
    if name in ("flip of rows", "a view", "a copy"):
        assert told.tolist() == [i == bad for i in range(8)]
