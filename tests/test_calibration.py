"""`rquant.Calibration`: any model, run in any way; the scales it leaves behind, and what it refuses."""

import copy
import functools
import math
import warnings

import pytest
import torch
from observed import METHODS, Net, images, net
from torch import nn

import rquant
from rquant import observers
from rquant.nn.static import static_qparams


def inputs_of(model, data):
    """What each layer's input is in float, by hooks of our own on a float model."""
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            hook = lambda m, args, kwargs, name=name: seen.setdefault(name, []).append(  # noqa: E731
                [*args, *kwargs.values()][0].detach()
            )
            module.register_forward_pre_hook(hook, with_kwargs=True)
    for x in data:
        model(x)
    return seen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_scales_are_those_of_what_the_layers_saw(method, symmetric):
    model = net()
    rounded = copy.deepcopy(model)
    rquant.freeze(rounded)
    plain = Net().eval()  # float, with the weights as they are rounded
    for (_, a), (_, b) in zip(plain.named_modules(), rounded.named_modules(), strict=True):
        if isinstance(a, nn.Linear | nn.Conv2d):
            a.weight.data, a.bias.data = b.dequantize(), b.bias.data
    data = images()
    with rquant.Calibration(method, symmetric=symmetric) as calibration:
        outputs = [model(x) for x in data]
    for x, output in zip(data, outputs, strict=True):
        torch.testing.assert_close(output, plain(x), rtol=1e-4, atol=1e-5)  # no rounding inside
    for name, values in inputs_of(plain, data).items():
        observer = observers.observer_of(method)
        if method == "moving_average":  # all calls of a shared layer are one batch
            runs = len(values) // len(data)
            values = [torch.cat(values[i : i + runs]) for i in range(0, len(values), runs)]
        for value in values:
            observer.update(value)
        scale, zero = static_qparams(*observer.range(symmetric=symmetric), symmetric)
        layer = model.get_submodule(name)
        assert layer.input_scale.item() == pytest.approx(scale, rel=1e-3), name
        assert abs(layer.input_zero_point.item() - zero) <= (not symmetric), name
        assert (layer.input_scale.shape, layer.input_zero_point.dtype) == ((1,), torch.int8)
    assert len(calibration.statistics.tensors) == 5  # four inputs, and the sum that is averaged
    assert model.second.output_scale is not None
    assert model.never.input_scale is None
    assert calibration.unseen == ["never"]
    assert model.first.flow
    assert not model.head.flow


def test_static_scales_stay_and_the_model_is_near_the_float_one():
    torch.manual_seed(0)
    plain, model, data = Net().eval(), net(), images()
    with rquant.Calibration("minmax"):
        for x in data:
            model(x)
    scales = {name: b.clone() for name, b in model.named_buffers() if "scale" in name}
    rquant.freeze(model)
    model(images(1, seed=5)[0] * 100)
    assert all(torch.equal(b, scales[n]) for n, b in model.named_buffers() if n in scales)
    want, got = plain(data[2]), model(data[2])
    assert ((got - want).norm() / want.norm()).item() < 0.05


def test_it_runs_on_what_is_already_frozen_and_goes_on_when_entered_again():
    data = images(4)
    once, twice = net(), net()
    rquant.freeze(twice)
    with rquant.Calibration(momentum=0.5):
        for x in data:
            once(x)
    calibration = rquant.Calibration(momentum=0.5)
    for part in (data[:1], data[1:]):
        with calibration:
            for x in part:
                twice(image=x)
    for name in ("first", "second", "shared", "head"):
        pairs = zip(once.get_submodule(name).qparams("input"), twice.get_submodule(name).qparams("input"))  # noqa: B905
        assert all(torch.equal(a, b) for a, b in pairs), name


def test_momentum_weighs_inputs_and_outputs():
    for place in ("input", "output"):
        ends = []
        for momentum in (0.0, 0.9, 1.0):
            model, data = net(), images(6)
            with rquant.Calibration(momentum=momentum):
                for x in data:
                    model(x)
            ends.append(model.second.qparams(place)[0].item())
        last, mean, first = ends  # the batches grow
        assert first < mean < last
        assert mean != pytest.approx((first + last) / 2)


def test_overrides_by_name():
    data = images()
    factory = functools.partial(observers.Percentile, 60.0)
    model = net()
    with rquant.Calibration("minmax", overrides={"head": factory, "re:s.*": "mse"}) as calibration:
        for x in data:
            model(x)
    alike = {}
    for method in ("minmax", "mse"):
        alike[method] = net()
        with rquant.Calibration(method):
            for x in data:
                alike[method](x)
    assert torch.equal(model.first.input_scale, alike["minmax"].first.input_scale)
    for name in ("second", "shared"):
        scale = model.get_submodule(name).input_scale
        assert torch.equal(scale, alike["mse"].get_submodule(name).input_scale)
    assert model.head.input_scale < 0.8 * alike["minmax"].head.input_scale
    assert calibration.statistics.choice.of_layer("second") == "mse"


def test_an_override_that_matches_nothing_changes_nothing():
    model = net()
    said = r"overrides: 'haed' matches nothing; layers that ran are first, second"
    with pytest.raises(ValueError, match=said), rquant.Calibration(overrides={"haed": "mse"}):
        model(images(1)[0])
    assert model.first.input_scale is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_samples_are_named_and_leave_the_model_alone(bad):
    model, x = net(), images(1)[0]
    x[1, 2, 3, 4] = bad
    said = r"^first\.input: expected finite numbers, .* at \[1, 2, 3, 4\]"
    with pytest.raises(ValueError, match=said), rquant.Calibration():
        model(x)
    assert model.first.input_scale is None
    with rquant.Calibration():
        model(images(1)[0])
    assert model.first.input_scale is not None


def test_nothing_to_calibrate():
    model, x = Net(), images(1)[0]
    with pytest.warns(UserWarning, match="no layer with int8 activations ran inside"), rquant.Calibration():
        model(x)
    rquant.quantize(model)  # weights alone
    with pytest.warns(UserWarning, match="no layer with int8 activations ran inside"), rquant.Calibration():
        model(x)
    with pytest.raises(ValueError, match="model: expected layers with int8 activations, got none"):
        rquant.Calibration(model=model)
    with pytest.raises(ValueError, match="model: expected layers with int8 activations, got none"):
        rquant.calibrate(model, [x])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError), rquant.Calibration():
            raise KeyError
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_one_at_a_time():
    with pytest.raises(RuntimeError, match="one inside another"), rquant.Calibration(), rquant.Calibration():
        pass
    model = net()
    with rquant.Calibration():
        model(images(1)[0])
    assert model.first.input_scale is not None


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"method": "max"}, "method"),
        ({"method": 3}, "method"),
        ({"overrides": {"a": "best"}}, r"overrides\['a'\]"),
        ({"overrides": {"re:(": "mse"}}, "overrides"),
        ({"momentum": 2}, "momentum"),
        ({"percentile": 0}, "percentile"),
    ],
)
def test_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        rquant.Calibration(**arguments)


def test_parts_called_by_themselves_have_names_of_their_own():
    one, two = (nn.Sequential(nn.Linear(4, 4)) for _ in range(2))
    for part in (one, two):
        rquant.quantize(part, activations="int8")
    with rquant.Calibration() as calibration:
        two(one(torch.randn(3, 4)))
    assert list(calibration.layers) == ["0", "0#2"]
    both = nn.ModuleDict({"one": one, "two": two})
    with rquant.Calibration(model=both) as calibration:
        two(one(torch.randn(3, 4)))
    assert list(calibration.layers) == ["one.0", "two.0"]


def test_calibrate_takes_batches_of_every_kind():
    x = images(1)[0]
    for batches in ([x, x], [(x,), [x, 1.0]], [{"image": x}, {"image": x, "scale": 1.0}]):
        model = net().train()
        calibration = rquant.calibrate(model, iter([*batches, None]), "minmax", samples=8)
        assert calibration.statistics.tensors[("first", "input")].histogram.total == 2 * x.numel()
        assert model.training
        assert model.first.input_scale is not None
    with pytest.raises(ValueError, match="samples: expected an int of at least 1, got 0"):
        rquant.calibrate(net(), [x], samples=0)
    with pytest.raises(ValueError, match="batches: expected at least one sample"):
        rquant.calibrate(net(), [])
    with pytest.raises(ValueError, match="batches: expected tensors in a batch, got str"):
        rquant.calibrate(net(), ["x"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = net().to(dtype)
    with rquant.Calibration():
        model(images(1)[0].to(dtype))
    assert model.first.input_scale.dtype == torch.float32
    assert model(images(1)[0].to(dtype)).dtype == dtype


def test_a_norm_that_quantized_layers_read_gives_them_codes():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.last = nn.LayerNorm(16), nn.Linear(16, 16), nn.LayerNorm(16)

        def forward(self, x):
            return self.last(x + self.up(self.norm(x)))

    torch.manual_seed(0)
    plain, x = Block().eval(), torch.randn(4, 5, 16)
    model = copy.deepcopy(plain)
    rquant.quantize(model, activations="int8")
    with rquant.Calibration() as calibration:
        model(x)
    assert (model.norm.flow, model.up.flow, model.last.flow) == (True, False, None)
    assert calibration.unseen == []
    torch.testing.assert_close(model(x), plain(x), rtol=0.05, atol=0.05)
    fresh = copy.deepcopy(plain)
    rquant.quantize(fresh, activations="int8")
    calibration.apply(fresh, "moving_average")
    assert fresh.norm.flow
    assert torch.equal(fresh(x), model(x))


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch 2.6 or later")
@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
def test_a_compiled_model_runs_eagerly_inside():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.randn(4, 8)
    rquant.quantize(model, activations="int8")
    rquant.freeze(model)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        dynamic = compiled(x)
        with rquant.Calibration() as calibration:
            compiled(x)
        assert list(calibration.layers) == ["0", "2"]
        assert not torch.equal(compiled(x), dynamic)
        assert torch.equal(compiled(x), model(x))
