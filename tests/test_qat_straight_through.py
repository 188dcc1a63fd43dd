"""Gradients through layers that train no more: the integers of `no_grad`, the derivatives of float arithmetic."""

import copy

import pytest
import torch
from test_qat import block
from torch import nn
from torch.nn import functional

import rquant
from rquant import qat
from rquant.flow import Floats
from rquant.nn import static


class Branches(nn.Module):
    """Every way that int8 goes: concat, pad, sums, pools, moves, a value with several readers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3)
        self.sum, self.up = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.stem(x)), 2)
        x = torch.cat([self.left(x), functional.relu6(self.right(functional.pad(x, (1, 1, 1, 1))))], 1)
        y = functional.relu(self.sum(x))
        y = functional.avg_pool2d(y + x, 2).flip(2)
        y = self.up(y)
        return self.head(self.norm(y.flatten(2).transpose(1, 2))).mean(1)


X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def branches(calibrated=True):
    torch.manual_seed(0)
    model = Branches().eval()
    rquant.quantize(model, "int4", activations="int8", include="*")
    if calibrated:
        with rquant.Calibration():
            model(X)
    return model


def in_float(monkeypatch):
    """Have layers compute in float where they are to compute straight through."""
    monkeypatch.setattr(static, "STRAIGHT_THROUGH", Floats())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("of", ["branches", "branches, dynamic", "residual"])
def test_the_integers_and_float_s_gradient(monkeypatch, of, frozen):
    model = block(X, "int8").eval() if of == "residual" else branches(of == "branches")
    if of == "residual":
        qat.prepare(model)
    if frozen:
        rquant.freeze(model)
    with torch.no_grad():
        want = model(X)
    x = X.clone().requires_grad_()
    got = model(x)
    assert torch.equal(got, want)
    got.square().sum().backward()
    grad, x.grad = x.grad, None
    in_float(monkeypatch)
    model(x).square().sum().backward()
    assert x.grad.abs().max() > 0
    assert (grad - x.grad).norm() <= 0.05 * x.grad.norm()


def test_what_lies_before_trains_on_what_is_deployed():
    model = branches()
    rquant.freeze(model)
    before = nn.Conv2d(3, 3, 1)
    optimizer, losses = torch.optim.Adam(before.parameters(), 0.05), []
    target = torch.arange(6) % 5
    for _ in range(15):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(before(X)), target)
        with torch.no_grad():
            assert torch.equal(functional.cross_entropy(model(before(X)), target), loss)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_norm_trains_among_frozen_layers(tmp_path):
    def build():
        torch.manual_seed(0)
        layers = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 8), nn.ReLU(), nn.LayerNorm(8)
        return nn.Sequential(*layers, nn.Linear(8, 5)).eval()

    model, x = build(), torch.randn(8, 16)
    rquant.quantize(model, "int8", activations="int8", include="*")
    with rquant.Calibration():
        model(x)
    rquant.freeze(model)
    rquant.save(model, tmp_path / "m.safetensors")
    want = model(x)
    assert not want.requires_grad
    for one in (model, copy.deepcopy(model), rquant.load(tmp_path / "m.safetensors", build())):
        assert torch.equal(one.train()(x), want)
        one(x).square().sum().backward()
        for norm in (one[1], one[4]):
            assert norm.weight.grad.abs().max() > 0
            assert norm.bias.grad.abs().max() > 0


def test_nan_comes_out_where_it_went_in():
    model = branches()
    rquant.freeze(model)
    x = X.clone()
    x[2, 1, 3, 3] = torch.nan
    with torch.no_grad():
        want = model(x)
    got = model(x.requires_grad_())
    assert want[2].isnan().all()
    assert not want[3].isnan().any()
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(), want.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_half_precision(dtype):
    model = branches()
    rquant.freeze(model)
    model, x = model.to(dtype), X.to(dtype)
    with torch.no_grad():
        want = model(x)
    got = model(x.requires_grad_())
    assert got.dtype == dtype
    assert torch.equal(got, want)
    got.float().sum().backward()
    assert x.grad.isfinite().all()


def test_compiled_it_is_the_same():
    model = branches()
    rquant.freeze(model)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    out, got = model(x), compiled(y)
    assert torch.equal(got, out)
    out.sum().backward()
    got.sum().backward()
    assert torch.allclose(x.grad, y.grad, rtol=1e-3, atol=1e-6)


def test_torch_func_s_gradient_is_autograd_s():
    model = branches()
    rquant.freeze(model)
    x = X.clone().requires_grad_()
    out = model(x)
    out.sum().backward()
    got, pull = torch.func.vjp(model, X)
    assert torch.equal(got, out)
    assert torch.equal(pull(torch.ones_like(got))[0], x.grad)
