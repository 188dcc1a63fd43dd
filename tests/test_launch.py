"""Products that a calibrated layer keeps ready: never those of what the layer no longer is."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn

import rquant
from rquant import _rquant
from rquant._native.launch import Launches

X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))


def calibrated(model, x):
    rquant.quantize(model, weights="int8", activations="int8")
    with rquant.Calibration(method="minmax"):
        model(x)
    return rquant.freeze(model) or model


@pytest.fixture(params=["conv", "linear"])
def pair(request):
    """A layer whose input is codes already, after one that gives them, and what goes in."""
    torch.manual_seed(1)
    if request.param == "conv":
        layers, x = (nn.Conv2d(8, 12, 1), nn.Conv2d(12, 6, 3, padding=1)), X
    else:
        layers, x = (nn.Linear(8, 12), nn.Linear(12, 6)), X.movedim(1, -1)
    return calibrated(nn.Sequential(layers[0], nn.ReLU(), layers[1]).eval(), x), x


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def by_ops(model, x):
    """The same without what is kept: a mode that watches sees the ops."""

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Seen():
        return model(x)


def refit(layer):
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state["weight_packed"] = state["weight_packed"].flip(0)
    layer.load_state_dict(state)


CHANGES = {
    "bias in place": lambda layer: layer.bias.add_(1.0),
    "bias data": lambda layer: setattr(layer.bias, "data", layer.bias.data + 1.0),
    "bias replaced": lambda layer: setattr(layer, "bias", nn.Parameter(layer.bias * 2)),
    "bias dtype": lambda layer: setattr(layer.bias, "data", (layer.bias * 2).half()),
    "no bias": lambda layer: setattr(layer, "bias", None),
    "input scale in place": lambda layer: layer.input_scale.mul_(1.5),
    "input scale replaced": lambda layer: setattr(layer, "input_scale", layer.input_scale * 1.5),
    "input zero in place": lambda layer: layer.input_zero_point.sub_(3),
    "calibrated again": lambda layer: layer.calibrate("input", -1.0, 9.0),
    "other weight": refit,
    "half": lambda layer: layer.half(),
    "other memory": lambda layer: layer.share_memory(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_seen(pair, what):
    model, x = pair
    before = model(x)
    assert torch.equal(before, by_ops(model, x))
    CHANGES[what](model[2])
    after = model(x)
    assert torch.equal(after, by_ops(model, x))
    assert torch.equal(after, before) == (
        what == "other memory" or (what == "half" and torch.equal(after, before))
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("stride", (2, 2)), ("dilation", (2, 2)), ("_reversed_padding_repeated_twice", [0, 0, 1, 1])],
)
def test_a_geometry_that_changes_is_seen(name, value):
    model = calibrated(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)).eval(), X)
    shape = model(X).shape
    setattr(model[1], name, value)
    got = model(X)
    assert got.shape != shape
    assert torch.equal(got, by_ops(model, X))
    if isinstance(value, list):
        value[:] = [1, 1, 1, 1]
        assert model(X).shape == shape


def test_inputs_of_many_sizes(pair):
    model, x = pair
    for n in (1, 2, *range(3, 40), 1, 2):
        several = x[:1].expand(n, *x.shape[1:])
        assert torch.equal(model(several), by_ops(model, several))
    kept = model[2].__dict__["_launches_done"]
    assert len(kept._ready) <= 16
    assert len(kept._sized) <= 16


def test_an_addend_and_its_scale():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(8, 8, 1) for _ in range(3))

        def forward(self, x):
            x = self.a(x)
            return self.c(x + self.b(x))

    model = calibrated(Residual().eval(), X)
    for change in (
        lambda: None,
        lambda: model.b.input_scale.mul_(2.0),
        lambda: model.b.calibrate("input", -5.0, 5.0),
    ):
        change()
        assert torch.equal(model(X), by_ops(model, X))


def test_copies_and_pickles_hold_nothing_of_it(pair):
    model, x = pair
    want = model(x)
    assert "_launches_done" in model[2].__dict__
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
        layer = other[2]
        assert layer is model[2] or "_launches_done" not in layer.__dict__
        assert torch.equal(other(x), want)
    assert not any("launch" in name for name in model.state_dict())
    model[2].bias.add_(1.0)
    assert not torch.equal(model(x), want)


def test_the_weight_is_not_held():
    layer = calibrated(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval(), X.movedim(1, -1))[1]
    layer(X.movedim(1, -1))
    panels = weakref.ref(layer.panels())
    layer.load_state_dict(layer.state_dict())
    layer.to("meta")
    gc.collect()
    assert panels() is None


def test_a_product_whose_addresses_are_others_does_nothing():
    held = torch.ones(1), torch.zeros(1, dtype=torch.int8)
    sizes = (1, 1, 1, 4, 4, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0)
    addresses = [held[0].data_ptr(), held[1].data_ptr(), 0, 0, 0, held[0].data_ptr(), held[1].data_ptr()]
    product = _rquant.StaticProduct(sizes, -1.0, 1.0, 0, 0, addresses, held)
    assert not product.run(1, addresses[0] + 4, addresses[1], 1, 1, 0, 0, 0, 0, 1, *addresses[5:], 1)
    with pytest.raises(ValueError, match="panels"):
        product.run(1, *addresses[:2], 0, 0, 0, 0, 0, 0, 1, *addresses[5:], 1)
    with pytest.raises(ValueError, match="stride"):
        _rquant.StaticProduct((*sizes[:7], 0, *sizes[8:]), -1.0, 1.0, 0, 0, addresses, held)


def test_threads_at_the_same_time(pair):
    model, x = pair
    inputs = [x[:1], x, x.repeat(3, *[1] * (x.dim() - 1))]
    want, wrong = [model(x) for x in inputs], []

    def call(first):
        with torch.no_grad():
            for i in range(60):
                which = (first + i) % 3
                wrong.extend([] if torch.equal(model(inputs[which]), want[which]) else [which])

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_that_is_not_as_it_was():
    launches = Launches((), torch.channels_last)
    layer = calibrated(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)).eval(), X)[1]
    scale, zero = layer.qparams("input")
    codes = torch.randint(-9, 9, (2, 8, 6, 6), dtype=torch.int8)
    last = codes.contiguous(memory_format=torch.channels_last)

    def product(codes):
        arguments = layer.panels(), layer.bias, None, -1.0, 1.0, (scale, zero), torch.float32
        return launches.product(layer._sized, (codes, scale, zero), *arguments)

    assert product(last) is not None
    assert product(codes) is None
    assert product(last.float()) is None
    assert torch.equal(product(last), product(last.clone(memory_format=torch.preserve_format)))


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize(("layer", "x"), [(nn.Conv2d(8, 6, 1), X), (nn.Linear(8, 6), X.movedim(1, -1))])
def test_products_of_codes_do_not_seem_to_have_gradients(layer, x, freeze):
    model = nn.Sequential(copy.deepcopy(layer)).eval()
    rquant.quantize(model, weights="int8", activations="int8")
    with rquant.Calibration(method="minmax"):
        model(x)
    if freeze:
        rquant.freeze(model)
    with torch.enable_grad():
        assert model[0].bias.requires_grad
        assert not model(x).requires_grad
        assert not by_ops(model, x).requires_grad
