"""Training that torch.compile has compiled: the losses, gradients and statistics of eager mode, in one graph."""

import copy

import pytest
import torch
from torch import nn

import rquant

WAYS = {
    "learned": {},
    "tensor": {"per_tensor": True},
    "rounded": {"weights": "rounded"},
    "fixed": {"activations": "fixed"},
}


def prepared(**how):
    torch.manual_seed(0)
    x = torch.randn(8, 3, 6, 6)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 5)
    )
    rquant.quantize(model.eval(), "int4", activations="int8")
    rquant.qat.fold_bn(model, x)
    rquant.calibrate(model, [x])
    rquant.qat.prepare(model, **how)
    return model.train(), x


def assert_close(model, other):
    """Last bits of sums move some to the next code; of a scale's own gradient most cancels, and one code is much of the rest."""
    some = 0.01 * max(parameter.grad.norm() for parameter in other.parameters())
    for got, want in zip(model.parameters(), other.parameters(), strict=True):
        assert (got.grad - want.grad).norm() <= 0.1 * want.grad.norm() + some
    for got, want in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_step_is_the_eager_one(way):
    model, x = prepared(**WAYS[way])
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        losses = [step(x).square().mean() for step in (compiled, eager)]
        assert torch.allclose(*losses, rtol=1e-3)
        for loss in losses:
            loss.backward()
    assert_close(model, eager)


def test_observers_break_the_graph_and_see_every_batch():
    model, x = prepared(activations="observed")
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager")
    for factor in (1.0, 2.0, 3.0):
        for step in (compiled, eager):
            step(factor * x).square().mean().backward()
    assert_close(model, eager)
    assert torch.equal(model[0].input_range.scale, eager[0].input_range.scale)
    assert model[0].input_range.observer.batches == 4
    rquant.qat.freeze_observers(model)
    torch.compile(model, backend="aot_eager", fullgraph=True)(x).sum().backward()
