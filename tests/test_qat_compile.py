"""Training that torch.compile has compiled: the loss and the gradients of eager mode."""

import copy

import pytest
import torch
from torch import nn

import rquant


@pytest.mark.parametrize("weights", ["learned", "rounded"])
def test_a_compiled_step_is_the_eager_one(weights):
    torch.manual_seed(0)
    x = torch.randn(8, 3, 6, 6)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    rquant.quantize(model, "int4", activations="int8")
    rquant.qat.fold_bn(model, x)
    rquant.calibrate(model, [x])
    rquant.qat.prepare(model, weights=weights)
    eager = copy.deepcopy(model).train()
    compiled = torch.compile(model.train(), backend="aot_eager")
    losses = [step(x).square().mean() for step in (compiled, eager)]
    assert torch.allclose(*losses, rtol=1e-3)
    for loss in losses:
        loss.backward()
    for got, want in zip(model.parameters(), eager.parameters(), strict=True):
        assert (
            got.grad - want.grad
        ).norm() <= 0.1 * want.grad.norm()  # last bits of sums move some to the next code
