"""int8 between layers: what flows, what is fused, and that nothing else changes."""

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import rquant
from rquant.flow import Activation, Recorder
from rquant.nn.static import StaticInput


class MinMax(Recorder):
    """The simplest calibration: all that was seen."""

    def __init__(self):
        super().__init__()
        self.ranges = {}

    def see(self, layer, name, value):
        lo, hi = self.ranges.get((layer, name), (0.0, 0.0))
        self.ranges[layer, name] = min(lo, value.min().item()), max(hi, value.max().item())

    def input(self, layer, value):
        self.see(layer, "input", value)

    def output(self, layer, value):
        self.see(layer, "output", value)

    def apply(self):
        for (layer, name), (lo, hi) in self.ranges.items():
            layer.calibrate(name, lo, hi)
            layer.flow = (layer in self.flowing and layer not in self.leaked) or None
            layer.keep = self.kept.get(layer)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c, c, 3, 1, 1), nn.Conv2d(c, c, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        identity = x
        y = self.conv2(self.relu(self.conv1(x)))
        y += identity
        return self.relu(y)


class PreActivation(Block):
    def forward(self, x):
        return x + self.conv2(functional.relu(self.conv1(functional.relu(x))))


class Net(nn.Module):
    def __init__(self, block=Block):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.block1, self.block2 = block(16), block(16)
        self.down = nn.Conv2d(16, 16, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.up = nn.ConvTranspose2d(32, 8, 2, 2)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.stem(x)), 3, 2, 1)
        x = self.block2(self.block1(x))
        x = torch.cat([x, self.down(x) + x], 1)
        x = functional.relu6(self.depthwise(functional.pad(x, (0, 1, 1, 0))))
        x = functional.adaptive_avg_pool2d(self.up(x), 1)
        return self.fc(torch.flatten(x, 1))


def images(n=3):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def calibrated(model, x, **scheme):
    rquant.quantize(model, activations="int8", **scheme)
    recorder = MinMax()
    with recorder.recording():
        model(x)
    recorder.apply()
    return model


@pytest.fixture(params=[Block, PreActivation])
def net(request):
    torch.manual_seed(0)
    return Net(request.param).eval()


def ops_of(model, x):
    class Seen(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.calls = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.calls.append(
                (func, [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)])
            )
            return out

    with Seen() as seen, torch.no_grad():
        model(x)
    return seen.calls


@torch.no_grad()
@pytest.mark.parametrize("scheme", [{}, {"weights": "int4", "group_size": 8}], ids=str)
def test_static_is_close_and_survives_all_that_models_go_through(net, scheme, tmp_path):
    x = images()
    want = net(x)
    model = calibrated(copy.deepcopy(net), x, **scheme)
    unfrozen = model(x)
    assert type(unfrozen) is torch.Tensor
    assert functional.cosine_similarity(unfrozen, want).min() > (0.99 if not scheme else 0.9)
    rquant.freeze(model)
    got = model(x)
    assert torch.equal(got, unfrozen)
    assert torch.equal(copy.deepcopy(model)(x), got)
    rquant.save(model, tmp_path / "m.safetensors")
    with torch.device("meta"):
        skeleton = Net(type(net.block1)).eval()
    assert torch.equal(rquant.load(tmp_path / "m.safetensors", skeleton)(x), got)
    again = rquant.requantize(
        Net(type(net.block1)).eval(), model.state_dict(), rquant.quantization_map(model)
    )
    assert torch.equal(again(x), got)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), got)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), got)
    halved = copy.deepcopy(model).half()
    assert halved.stem.input_scale.dtype == torch.float32
    assert halved(x.half()).dtype == torch.float16


def test_no_float_tensor_between_layers(net):
    x = images()
    model = calibrated(net, x)
    rquant.freeze(model)
    floats = [
        (func, out.shape)
        for func, outs in ops_of(model, x)
        for out in outs
        # smaller ones are scales, biases, the classes; the input itself may be laid out anew
        if out.is_floating_point() and not out.is_meta and out.numel() > 200 and out.shape != x.shape
    ]
    assert not floats, floats
    convolutions = [func for func, _ in ops_of(model, x) if func is torch.ops.rquant.conv_static.default]
    layers = [m for m in model.modules() if isinstance(m, rquant.nn.conv._Conv)]
    assert len(convolutions) == len(layers)  # none twice


def test_a_residual_block_is_two_products():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Block(8), nn.Conv2d(8, 4, 1)).eval()
    calibrated(model, images())
    rquant.freeze(model)
    names = [func._opname for func, _ in ops_of(model, images()) if func.namespace == "rquant"]
    assert names == ["quantize_images_static"] + ["conv_static"] * 4


def test_memory_of_layers_before_is_free():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), *(nn.Conv2d(8, 8, 1) for _ in range(3))).eval()
    calibrated(model, images())
    with torch.no_grad():
        first = model[1](model[0](images()))
        second = model[2](first)
        codes = weakref.ref(first.value.rounded.codes)
        third = model[3](second)
        assert codes() is not None  # a skip connection may read them
        del first
        assert codes() is None
        assert torch.equal(model[4](third), model(images()))


def test_a_sample_with_nan_is_nan_and_others_are_not(net):
    x = images()
    model = calibrated(net, x)
    rquant.freeze(model)
    with torch.no_grad():
        want = model(x)
        x[1, 0, 0, 0] = torch.nan
        got = model(x)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], want[[0, 2]])


def test_what_leaves_the_model_is_a_tensor_and_so_is_what_other_functions_get():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)

        def forward(self, x):
            low = functional.relu(self.a(x))
            return {"low": low, "high": torch.sigmoid(self.b(low)) * 2 - low.mean()}

    torch.manual_seed(0)
    model, x = Pyramid().eval(), images()
    want = model(x)
    got = calibrated(model, x)(x)
    for name in want:
        assert type(got[name]) is torch.Tensor
        torch.testing.assert_close(got[name], want[name], rtol=0.05, atol=0.05)


def test_an_activation_passes_for_a_tensor():
    model = calibrated(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)).eval(), images())
    with torch.no_grad():
        x = model[0](images())
        assert type(x) is Activation
        floats = model[0](images()).float()
        assert (x.shape, x.dtype, x.dim(), x.size(1), len(x)) == (floats.shape, floats.dtype, 4, 8, 3)
        assert torch.equal(torch.sin(x), floats.sin())
        assert torch.equal(1 - x * 2, 1 - floats * 2)
        assert torch.equal(x[:, :4].reshape(3, -1).float(), floats[:, :4].reshape(3, -1))
        a, b = x.chunk(2, 1)
        assert torch.equal(torch.cat([b, a], 1).float(), floats.roll(4, 1))
        assert torch.equal((floats + x), floats * 2)
        y = model[0](images())
        later = y + y  # of the old value
        y.relu_()
        y.sin_()
        assert torch.equal(later.float(), floats * 2)
        assert torch.equal(y.float(), floats.relu().sin())


def test_training_sees_the_rounding_and_reaches_every_weight(net):
    x = images()
    model = calibrated(net, x).train()
    out = model(x)
    with torch.no_grad():
        deployed = model.eval()(x)
    assert functional.cosine_similarity(out, deployed).min() > 0.9999
    model.train()(x).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad.abs().sum() > 0, name


def test_layers_that_are_alone_and_never_seen_stay_dynamic():
    layer = rquant.Conv2d.from_float(nn.Conv2d(8, 4, 3), activations="int8")
    assert isinstance(layer, StaticInput)
    assert layer.calibrated is None
    x = torch.randn(2, 8, 5, 5)
    got = layer(x)
    want = functional.conv2d(x, layer.dequantize(), layer.bias)
    assert functional.cosine_similarity(got.flatten(1), want.flatten(1)).min() > 0.999
    assert torch.equal(layer(x[1]), got[1])
    x[0, 0, 0, 0] = torch.inf
    assert layer(x)[0].isnan().all()
    assert torch.equal(layer(x)[1], got[1])


def test_an_image_alone_and_a_wrong_one():
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1)).eval(), images()
    calibrated(model, x)
    rquant.freeze(model)
    with torch.no_grad():
        want = model(x)
        assert torch.equal(model(x[1]), want[1])
        for wrong in (x[:, :2], x[:, :, :2], torch.zeros(3, 0, 32, 32), x.repeat(1, 2, 1, 1)):
            with pytest.raises((ValueError, RuntimeError)):
                model(wrong)
        line = calibrated(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).eval(), torch.randn(3, 8))
        rquant.freeze(line)
        assert line(torch.zeros(0, 8)).shape == (0, 4)
        with pytest.raises((ValueError, RuntimeError)):
            line(torch.randn(3, 7))
