"""BatchNorm after a concatenation, as in DenseNet: no layer before it can take it in, and yet int8 flows through."""

import copy

import pytest
import torch
from test_norm import ops_of
from torch import nn

import rquant
from rquant import _static_ops

RULES = [(nn.BatchNorm2d, {"weights": "int8", "activations": "int8"})]


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.grow, self.last = (
            nn.Conv2d(3, 16, 3),
            nn.Conv2d(16, 8, 3, padding=1),
            nn.Conv2d(24, 4, 1),
        )
        self.norm = nn.BatchNorm2d(24)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.3, 3)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, self.grow(x)], 1)
        return self.last(torch.relu(self.norm(x)))


X = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def dense():
    model = Dense().eval()
    assert not rquant.fold_bn(model, X).folded
    rquant.quantize(model, activations="int8", rules=RULES)
    with rquant.Calibration("minmax"):
        model(X)
    return model


def test_int8_flows_through(dense, tmp_path):
    with torch.no_grad():
        want, got = Dense().eval()(X), dense(X)
        assert (got - want).norm() < 0.03 * want.norm()
        called = ops_of(dense, X)
        assert called.count("affine_static") == 1
        assert called.count("quantize_images_static") == 1  # the input
        assert "relu" not in called
        rquant.freeze(dense)
        assert torch.equal(dense(X), got)
        assert torch.equal(copy.deepcopy(dense)(X), got)
        assert torch.equal(torch.compile(dense, backend="aot_eager", fullgraph=True)(X), got)
        rquant.save(dense, tmp_path / "m.safetensors")
        again = rquant.load(tmp_path / "m.safetensors", Dense().eval().to("meta"))
        assert type(again.norm) is rquant.nn.BatchNorm2d
        assert torch.equal(again(X), got)


def test_codes_are_those_of_the_float_norm(dense):
    with torch.no_grad():
        stem = dense.stem(X)
        stands = dense.norm(torch.cat([stem, dense.grow(stem)], 1))
        x, norm, place = stands.value.node.x, dense.norm, dense.last
        floats = _static_ops.dequantize_static(x.codes, x.scale, x.zero, torch.float32)
        want = nn.functional.batch_norm(
            floats, norm.running_mean, norm.running_var, norm.weight, norm.bias
        ).relu()
        scale, zero = place.input_scale, place.input_zero_point
        want, _ = _static_ops.quantize_static(want, scale, zero)
        stands = torch.relu(stands)
        place(stands)
        got = stands.value.rounded.codes
    assert (got.int() - want.int()).abs().max() <= 1
    assert (got == want).float().mean() > 0.99


def test_training_uses_the_batch(dense):
    before = dense.norm.running_mean.clone()
    dense.train()(X).square().sum().backward()
    assert not torch.equal(dense.norm.running_mean, before)
    assert all(p.grad.abs().sum() > 0 for name, p in dense.named_parameters() if "bias" not in name)


def test_only_where_it_is_named():
    model = Dense()
    rquant.quantize(model, activations="int8")
    assert type(model.norm) is nn.BatchNorm2d
    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 4), nn.BatchNorm1d(4))
    rquant.quantize(model, rules=[("*", {"weights": "int8", "activations": "int8"})])
    assert [type(m) for m in model] == [nn.BatchNorm1d, rquant.Linear, rquant.nn.BatchNorm1d]
    assert [row.name for row in rquant.fold_bn(model.eval(), torch.randn(3, 4)).folded] == ["2"]
