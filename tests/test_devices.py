"""A device without kernels computes by the reference, says so once, and takes and gives back the same weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

BEGIN = f"""
import copy, sys, warnings
import torch, rquant
from torch import nn
sys.path.insert(0, {str(Path(__file__).parent)!r})
import far_device
keep = far_device.install()
torch.manual_seed(0)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(10, 24), nn.Linear(24, 48), nn.Linear(48, 24)
        self.head = nn.Linear(24, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(x + self.down(torch.relu(self.up(x))))

def made(freeze=True, activations=None, weights="int4"):
    model = Model()
    rquant.quantize(model, weights, activations)
    if freeze:
        rquant.freeze(model)
    return model

def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name].cpu(), b[name].cpu()) for name in a)

ids = torch.arange(10)
"""

WITHOUT = not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend")
pytestmark = pytest.mark.skipif(WITHOUT, reason="devices in Python: torch 2.9 or later")


def run(script):
    done = subprocess.run([sys.executable, "-c", BEGIN + script], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"


def test_pain_11_and_12_one_model_on_both_devices():
    """Also 001-2: to a device and back the weights are the same bits; one warning in all."""
    run("""
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for weights, activations in (("int8", None), ("int8", "int8"), ("int4", None), ("int4", "int8"), ("int2", "int8")):
        model = made(True, activations, weights)
        want, state = model(ids).detach(), model.state_dict()
        model.to("far")
        assert set(model.up.held) >= {"weight_packed", "weight_scale"}
        assert model.up.weight.device.type == "far"
        assert all(a is b for a, b in zip(model.embed.held.values(), model.head.held.values()))
        for _ in range(2):
            y = model(ids.to("far"))
            assert y.device.type == "far"
            torch.testing.assert_close(y.cpu(), want, rtol=1e-5, atol=1e-5)
        assert same(model.state_dict(), state)
        model.load_state_dict(state)
        assert all(a is b for a, b in zip(model.embed.held.values(), model.head.held.values()))
        model.to("cpu")
        assert set(model.up.held) == {"_panels"} and model.embed.held["_panels"] is model.head.held["_panels"]
        assert torch.equal(model(ids), want) and same(model.state_dict(), state)
assert len(seen) == 1, [str(w.message) for w in seen]
assert seen[0].category is UserWarning and "no kernels for device 'far'" in str(seen[0].message)
""")


def test_quantized_on_the_device_it_is_the_same():
    run("""
warnings.simplefilter("ignore")
source = Model()
for weights in ("int8", "int4", "int2"):
    models = [copy.deepcopy(source).to(device) for device in ("cpu", "far")]
    for model in models:
        rquant.quantize(model, weights, include="*")  # torch unties what goes to such a device
    near, far = models
    torch.testing.assert_close(far(ids.to("far")).cpu(), near(ids), rtol=1e-5, atol=1e-5)
    for model in models:
        rquant.freeze(model)
    assert same(near.state_dict(), far.state_dict())
    again = rquant.requantize(Model(), far.state_dict(), rquant.quantization_map(far), device="far")
    assert again.up.held["weight_packed"].device.type == "far" and same(again.state_dict(), far.state_dict())
""")


def test_gradients_on_the_device():
    run("""
warnings.simplefilter("ignore")
for activations in (None, "int8"):
    layer = rquant.Linear.from_float(nn.Linear(24, 48), "int4", activations)
    x, upstream, grads = torch.randn(3, 24), torch.randn(3, 48), {}
    for device in ("cpu", "far"):
        layer.to(device)
        layer.zero_grad()
        there = x.detach().to(device).requires_grad_()
        layer(there).backward(upstream.to(device))
        grads[device] = there.grad.cpu(), layer.bias.grad.cpu()
    torch.testing.assert_close(grads["far"], grads["cpu"], rtol=1e-5, atol=1e-5)
""")


def test_tensors_on_two_devices_are_named():
    run("""
warnings.simplefilter("ignore")
layer, x = rquant.Linear.from_float(nn.Linear(24, 48)), torch.randn(3, 24)
for there, here in (("cpu", "far"), ("far", "cpu")):
    layer.to(there)
    try:
        layer(x.to(here))
    except ValueError as error:
        name = {"cpu": "cpu", "far": "far:0"}
        assert str(error) == f"x: expected a tensor on {name[there]}, where the weight is, got {name[here]}", error
    else:
        raise AssertionError(f"x on {here}, weight on {there}: accepted")
""")


def test_calibrated_models_on_the_device_give_the_same_codes():
    """Convolutions, residual sums and pools hand codes to one another there too; a convolution's dynamic int8 as well."""
    run("""
warnings.simplefilter("ignore")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.pool, self.head, self.last = nn.AdaptiveAvgPool2d(3), nn.Linear(72, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = x + self.second(x)
        return self.last(torch.relu(self.head(self.pool(x).flatten(1))))

for weights, calibrated in (("int8", True), ("int4", True), ("int8", False)):
    net, x = Net().eval(), torch.randn(2, 3, 9, 9)
    rquant.quantize(net, weights, "int8", include="*")
    if calibrated:
        with rquant.Calibration():
            net(x)
    far = copy.deepcopy(net).to("far")
    for freeze in (False, True):
        if freeze:
            rquant.freeze(net), rquant.freeze(far)
            assert set(far.first.held) >= {"weight_packed", "weight_scale"}
        with torch.no_grad():
            torch.testing.assert_close(far(x.to("far")).cpu(), net(x), rtol=1e-5, atol=1e-5)
""")
