"""`LayerNorm`: float until calibrated; then the layers after it get its codes, and no float tensor lies between."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import rquant
from rquant import _static_ops
from rquant.flow import Activation


class Block(nn.Module):
    """Pre-norm attention-like block: one norm is read by two layers, one by one, the last by none."""

    def __init__(self, width=32):
        super().__init__()
        self.norm1, self.norm2, self.last = (nn.LayerNorm(width) for _ in range(3))
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        h = self.norm1(x)
        x = x + torch.tanh(self.a(h)) * self.b(h)
        return self.last(x + self.down(torch.relu(self.up(self.norm2(x)))))


def calibrate(model, x):
    with rquant.Calibration() as calibration:
        model(x)
    assert not calibration.unseen
    return model


@pytest.fixture
def block():
    torch.manual_seed(0)
    model = Block().eval()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


X = torch.randn(4, 7, 32, generator=torch.Generator().manual_seed(1))


def ops_of(model, x):
    class Seen(TorchDispatchMode):
        calls = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Seen() as seen, torch.no_grad():
        model(x)
    return seen.calls


def test_until_calibrated_it_is_torch_s(block):
    want = {name: module for name, module in block.named_modules() if isinstance(module, nn.LayerNorm)}
    report = rquant.quantize(block, activations="int8")
    for name, norm in want.items():
        ours = block.get_submodule(name)
        assert type(ours) is rquant.LayerNorm
        assert ours.weight is norm.weight
        assert torch.equal(ours(X), norm(X))
    notes = {row.note for row in report.floating}
    assert notes == {"float parameters; int8 for the layer after it, once calibrated"}


@pytest.mark.parametrize("frozen", [False, True])
def test_codes_reach_the_layer_after_it(block, frozen):
    want = block(X)
    rquant.quantize(block, activations="int8")
    calibrate(block, X)
    if frozen:
        rquant.freeze(block)
    with torch.no_grad():
        assert (block(X) - want).norm() < 0.02 * want.norm()
    called = ops_of(block, X)
    assert called.count("layer_norm_static") == 2
    assert called.count("native_layer_norm") == 1  # the last one, which the model returns
    assert not any(name.startswith("quantize") for name in called)  # nothing was float before a layer


def test_codes_are_those_of_the_float_norm(block):
    rquant.quantize(block, activations="int8")
    norm, layer = calibrate(block, X).norm2, block.up
    with torch.no_grad():
        stands = norm(X)
        assert isinstance(stands, Activation)
        layer(stands)
        scale, zero = layer.input_scale, layer.input_zero_point
        want, _ = _static_ops.quantize_static(nn.LayerNorm.forward(norm, X), scale, zero)
        got = stands.value.rounded.codes
        assert (got.int() - want.int()).abs().max() <= 1
        assert (got == want).float().mean() > 0.99
        torch.testing.assert_close(norm(X) * 1, nn.LayerNorm.forward(norm, X))  # who is no layer gets floats


def test_a_sample_with_nan_is_nan_and_others_are_not(block):
    rquant.quantize(block, activations="int8")
    calibrate(block, X)
    with torch.no_grad():
        want, bad = block(X), X.clone()
        bad[1, 3, 5], bad[2, 0, 0] = torch.nan, -torch.inf
        got = block(bad)
    assert got[1:3].isnan().any(-1).any(-1).all()
    assert torch.equal(got[[0, 3]], want[[0, 3]])


def test_the_same_after_all_that_models_go_through(block, tmp_path):
    skeleton = copy.deepcopy(block).to("meta")
    rquant.quantize(block, activations="int8")
    rquant.freeze(calibrate(block, X))
    with torch.no_grad():
        want = block(X)
        assert torch.equal(copy.deepcopy(block)(X), want)
        rquant.save(block, tmp_path / "m.safetensors")
        again = rquant.load(tmp_path / "m.safetensors", skeleton)
        assert torch.equal(again(X), want)
        assert again.norm1.flow
        assert not again.last.flow
        assert torch.equal(torch.compile(block, backend="aot_eager", fullgraph=True)(X), want)
        half = copy.deepcopy(block).bfloat16()(X.bfloat16())
        assert half.dtype == torch.bfloat16
        assert (half.float() - want).norm() < 0.05 * want.norm()


def test_gradients_reach_everything(block):
    rquant.quantize(block, activations="int8")
    calibrate(block, X).train()
    deployed = block.eval()(X)
    x = X.clone().requires_grad_()
    out = block.train()(x)
    assert nn.functional.cosine_similarity(out.flatten(), deployed.flatten(), 0) > 0.999
    out.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in [x, *block.parameters()])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"activations": "int8", "exclude": "norm*"},
        {"rules": [("a", {"weights": "int8", "activations": "int8"})]},
    ],
    ids=["weights alone", "excluded", "a rule for others"],
)
def test_when_it_stays_torch_s(block, arguments):
    rquant.quantize(block, **arguments)
    assert type(block.norm1) is nn.LayerNorm


def test_by_a_rule_alone(block):
    rquant.quantize(block, rules=[("norm1", {"weights": "int8", "activations": "int8"})])
    assert type(block.norm1) is rquant.LayerNorm
    assert type(block.norm2) is nn.LayerNorm


def test_from_float():
    norm = nn.LayerNorm((3, 4), eps=1e-3, bias=False)
    made = rquant.LayerNorm.from_float(norm)
    x = torch.randn(2, 3, 4)
    assert torch.equal(made(x), norm(x))
    made.weight.data.zero_()
    assert norm.weight.abs().min() > 0
    plain = rquant.LayerNorm.from_float(nn.LayerNorm(4, elementwise_affine=False))
    assert torch.equal(plain(x), nn.functional.layer_norm(x, (4,)))
    with pytest.raises(TypeError, match=r"norm: expected nn.LayerNorm, got Linear"):
        rquant.LayerNorm.from_float(nn.Linear(2, 2))


def test_hooks_and_sharing_stay():
    norm = nn.LayerNorm(8)
    model = nn.ModuleDict(
        {"one": nn.Sequential(norm, nn.Linear(8, 8)), "two": nn.Sequential(norm, nn.Linear(8, 8))}
    )
    seen = []
    handle = norm.register_forward_hook(lambda *args: seen.append(1))
    rquant.quantize(model, activations="int8")
    assert model["one"][0] is model["two"][0]
    model["one"](torch.randn(2, 8))
    assert seen == [1]
    handle.remove()
    model["two"](torch.randn(2, 8))
    assert seen == [1]
