"""An activation where a tensor is expected: joined by samples, moved with its NaN, copied, read, written to files."""

import copy
import io
import pickle
import warnings

import einops
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import rquant
from rquant.flow import Activation


@pytest.fixture(scope="module")
def layers():
    """Two calibrated convolutions of 8 channels, of which the first gives activations."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)).eval()
    rquant.quantize(net, activations="int8")
    rquant.calibrate(net, [torch.randn(4, 8, 6, 6)])
    rquant.freeze(net)
    return net


@pytest.fixture
def x():
    return torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(1))


SAMPLES = {
    "cat": lambda y: torch.cat([y, y[1:]], 0),
    "part of them": lambda y: torch.cat([y[2:], y[:2], y[0:0]]),
    "pad": lambda y: functional.pad(y, (0, 0, 0, 0, 0, 0, 1, 2)),
    "one": lambda y: y[3],
}


@pytest.mark.parametrize("join", SAMPLES.values(), ids=SAMPLES)
def test_samples_are_joined(layers, x, join):
    with torch.no_grad():
        y = layers[0](x)
        assert isinstance(y, Activation)
        want = layers[1](join(y.float()))
        assert torch.equal(layers[1](join(layers[0](x))), want)
        y = layers[0](x)
        layers[1](y)  # codes from now on
        assert (join(y).float() - join(y.float())).abs().max() == 0


def test_nan_stays_with_its_sample_when_they_are_joined(layers, x):
    bad = x.clone()
    bad[2, 0, 0, 0] = torch.nan
    with torch.no_grad():
        out = layers[1](torch.cat([layers[0](x), layers[0](bad)]))
    assert out.isfinite().flatten(1).all(1).tolist() == [True] * 6 + [False, True]


def test_a_copy_is_a_tensor(layers, x):
    def saved(y):
        file = io.BytesIO()
        torch.save(y, file)
        file.seek(0)
        return torch.load(file)

    with torch.no_grad():
        for again in (saved, copy.copy, lambda y: pickle.loads(pickle.dumps(y))):
            y = layers[0](x)
            made = again(y)
            assert type(made) is torch.Tensor
            assert torch.equal(made, y.float())


def test_an_element_and_an_array(layers, x):
    with torch.no_grad():
        y = layers[0](x)
        layers[1](y)
        assert y[0, 0, 0, 0].float().shape == ()
        assert float(y[0, 0, 0, 0]) == y.float()[0, 0, 0, 0].item()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(np.array(y, copy=True), y.float().numpy())


def test_what_a_tensor_is_asked_for_computes_nothing(layers, x):
    with torch.no_grad():
        y = layers[0](x)
        for value in (y, y.relu(), y[:, 1:], torch.cat([y, y], 1), torch.max_pool2d(y, 2)):
            assert (value.device, value.dtype, value.ndim, len(value)) == (x.device, x.dtype, 4, 4)
            assert "pending" in repr(value)
        layers[1](y)
        assert y.device == x.device
        assert "codes" in repr(y)


def test_einops_moves_codes(layers, x):
    with torch.no_grad():
        y, want = layers[0](x), layers[0](x).float()
        moved = einops.rearrange(y, "n (g c) h w -> n (c g) h w", g=2)
        assert isinstance(moved, Activation)
        assert torch.equal(
            layers[1](moved), layers[1](einops.rearrange(want, "n (g c) h w -> n (c g) h w", g=2))
        )
        assert einops.reduce(y, "n c h w -> n c", "mean").shape == (4, 8)


def test_cat_after_tensors(layers, x):
    with torch.no_grad():
        y = layers[0](x)
        got = torch.cat([torch.zeros(4, 2, 6, 6), torch.ones(4, 1, 6, 6), y], 1)
        assert torch.equal(got[:, 3:], y.float())
        assert torch.equal(torch.cat((x, y)), torch.cat((x, y.float())))


@pytest.mark.parametrize(
    "read", [torch.as_tensor, torch.tensor, torch.asarray, torch.from_dlpack, np.from_dlpack]
)
@torch.no_grad()
def test_read_as_a_tensor(layers, x, read):
    y = layers[0](x)
    assert isinstance(y, Activation)
    assert np.array_equal(np.asarray(read(y)), y.float().numpy())


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
