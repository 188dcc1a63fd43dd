"""weights="float16" and "bfloat16": a cast of chosen layers, what would overflow named, norms left as they are."""

import copy

import pytest
import torch
from torch import nn

import rquant

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Net(nn.Module):
    """An embedding tied to the output layer, and a norm whose eps float16 does not hold."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(30, 24)
        self.norm = nn.LayerNorm(24, eps=1e-12)
        self.hidden = nn.Linear(24, 24)
        self.head = nn.Linear(24, 30)
        self.head.weight = self.rows.weight

    def forward(self, ids):
        return self.head(self.hidden(self.norm(self.rows(ids))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("weights", DTYPES)
def test_the_weights_and_nothing_else(net, weights, tmp_path):
    ids = torch.arange(12).reshape(3, 4)
    want = copy.deepcopy(net)
    for layer in (want.hidden, want.rows):
        layer.weight.data = layer.weight.data.to(DTYPES[weights]).float()
    report = rquant.quantize(net, weights)
    unfrozen = net(ids)
    rquant.freeze(net)
    assert torch.equal(net(ids), unfrozen)
    assert torch.equal(net(ids), want(ids))
    assert net.norm.weight.dtype == torch.float32
    assert {row.name: row.scheme for row in report.quantized}.keys() == {"rows", "hidden", "head"}
    assert next(row for row in report.floating if row.name == "norm").note
    state = net.state_dict()
    assert state["hidden.weight_packed"].dtype == DTYPES[weights]
    assert "hidden.weight_scale" not in state
    assert report.bytes_after == 2 * (30 * 24 + 24 * 24) + 4 * (24 + 30 + 48)
    assert net.head.held["weight_packed"] is net.rows.held["weight_packed"]
    rquant.save(net, tmp_path / "m.safetensors")
    with torch.device("meta"):
        back = Net()
    back = rquant.load(tmp_path / "m.safetensors", back)
    (tmp_path / "m.safetensors").unlink()
    assert torch.equal(back(ids), net(ids))
    other = Net()
    rquant.quantize(other, weights)
    other.load_state_dict(state)
    assert torch.equal(other(ids), net(ids))
    assert torch.equal(copy.deepcopy(net).float()(ids), net(ids))
    x = torch.randn(2, 24, requires_grad=True)
    net.hidden(x).sum().backward()
    torch.testing.assert_close(x.grad, want.hidden.weight.sum(0).expand(2, -1))
    assert net.hidden(x.bfloat16()).dtype == torch.bfloat16


def test_a_vector_without_spread_does_not_become_nan(net):
    """The eps of 1e-12 is 0 in float16: a norm cast too would divide 0 by 0."""
    rquant.quantize(net, "float16")
    rquant.freeze(net)
    assert net.norm(torch.full((1, 24), 0.5)).isfinite().all()


def test_training_reaches_the_float_weight(net):
    rquant.quantize(net, "bfloat16")
    net(torch.arange(4)).sum().backward()
    assert net.hidden.weight.grad.abs().sum() > 0


def test_overflow_is_named_and_leaves_the_model_alone(net):
    net.hidden.weight.data[3, 5] = -70000.0
    with pytest.raises(
        ValueError, match=r"hidden.weight: expected at most 65504.*float16, got -70000.0 at \[3, 5\]"
    ):
        rquant.quantize(net, "float16")
    assert type(net.hidden) is nn.Linear
    with pytest.raises(ValueError, match=r"weight: .*65504.*\[3, 5\]"):
        rquant.Linear.from_float(net.hidden, "float16")
    rquant.quantize(net, "bfloat16")
    net.hidden.weight.data[3, 5] = torch.inf
    with pytest.raises(ValueError, match=r"hidden.weight: .*infinity at \[3, 5\]"):
        rquant.freeze(net)


def test_what_a_cast_has_not(net):
    with pytest.raises(ValueError, match=r"group_size: .*qfloat16.*32"):
        rquant.quantize(net, "float16", group_size=32)
    with pytest.raises(ValueError, match=r"qtype: .*'float16'"):
        rquant.quantize_tensor(torch.ones(2, 2), "float16")
