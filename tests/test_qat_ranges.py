"""Ranges that follow the batches of training: of what is joined as of one batch, and as affine as they were calibrated."""

import pytest
import torch
from torch import nn

import rquant
from rquant import qat


def last_batch():
    """An average that remembers nothing but its last batch."""
    return rquant.observers.MovingAverage(0.0)


class Joined(nn.Module):
    """Two branches of unlike values, side by side before a layer."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        wide, narrow = self.wide(x), self.narrow(x)
        nested = torch.cat([narrow, wide], 1)
        return self.last(torch.cat([wide, nested, narrow], 1))


@pytest.fixture
def joined():
    torch.manual_seed(0)
    model, x = Joined(), torch.randn(8, 3, 5, 5)
    with torch.no_grad():
        model.wide.weight.mul_(20)
    rquant.quantize(model, activations="int8")
    with rquant.Calibration("minmax"):
        model(x)
    return model, x


def test_what_is_joined_is_one_batch(joined):
    model, x = joined
    calibrated = model.last.input_scale.item()
    qat.prepare(model, weights="rounded", activations="observed", observer=last_batch)
    seen = []
    follow = model.last.input_range._follow
    model.last.input_range._follow = lambda batch: (seen.append(batch.numel()), follow(batch))
    model.train()(x).sum().backward()
    assert seen == [2 * 8 * 4 * 25]  # each branch once
    assert model.last.input_range.scale.item() == pytest.approx(calibrated, rel=0.02)
    model(2 * x)
    assert model.last.input_range.scale.item() == pytest.approx(2 * calibrated, rel=0.1)


def test_parts_are_forgotten_after_an_error(joined, monkeypatch):
    model, x = joined
    qat.prepare(model, weights="rounded", activations="observed", observer=last_batch)
    model.train()

    def stop(x):
        raise RuntimeError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(model.narrow, "float_product", stop)
        with pytest.raises(RuntimeError, match="stop"):
            model(x)
    assert model.last.input_range.parts is None


@pytest.mark.parametrize("symmetric", [False, True])
def test_ranges_stay_affine_or_symmetric(symmetric):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    x = torch.tensor([[-1.0, 1.0, 0.0, 0.0]])  # the first input's zero point is 0 by chance
    rquant.quantize(model, activations="int8")
    with rquant.Calibration("minmax", symmetric=symmetric):
        model(x)
    assert model[0].input_zero_point.item() == 0
    qat.prepare(model, activations="observed", observer=last_batch)
    model.train()(torch.tensor([[0.0, 10.0, 0.0, 0.0]]))
    scale, zero = model[0].qparams("input")
    want = (10 / 127, 0) if symmetric else (10 / 254, -127)
    assert (scale.item(), zero.item()) == (pytest.approx(want[0]), want[1])
