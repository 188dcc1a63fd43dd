"""Modules of one's own: registered, they go through quantize, freeze, maps and files like the built-in ones."""

import copy
import json

import pytest
import torch
from torch import nn

import rquant
from rquant.nn import Container, PackedWeight, registry


class Scaled(nn.Module):
    """One weight of its own, and a constant."""

    def __init__(self, n, k, factor):
        super().__init__()
        self.weight, self.factor = nn.Parameter(torch.randn(n, k)), factor

    def forward(self, x):
        return x @ self.weight.T * self.factor


class QScaled(PackedWeight):
    OPTIONS = ("strength",)

    def __init__(self, factor, strength):
        super().__init__()
        self.factor, self.strength = factor, strength

    @classmethod
    def wrap(cls, module, scheme, strength=1):
        layer = cls(module.factor, strength)
        layer.begin(rquant.nn.float_weight(module), scheme)
        return layer

    @property
    def weight_shape(self):
        return 6, 64

    def forward(self, x):
        return x @ self.dequantize().T * self.factor * self.strength


class LowRank(nn.Module):
    """Two weights, and a Parameter and a buffer that stay."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(7, 64)), nn.Parameter(torch.randn(64, 7))
        self.gain = nn.Parameter(torch.rand(64))
        self.register_buffer("shift", torch.rand(64))

    def forward(self, x):
        return x @ self.down.T @ self.up.T * self.gain + self.shift


class QLowRank(Container):
    @classmethod
    def split(cls, module):
        made = cls.like(module, without=("down", "up"))
        made.down, made.up = cls.linear(module.down), cls.linear(module.up)
        return made

    def forward(self, x):
        return self.up(self.down(x)) * self.gain + self.shift


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.low, self.scaled, self.plain = LowRank(), Scaled(6, 64, 3.0), nn.Linear(6, 5)
        self.again = self.low

    def forward(self, x):
        return self.plain(self.scaled(self.again(self.low(x))))


@pytest.fixture(autouse=True)
def registered():
    before = list(registry._registrations), dict(registry._classes)
    rquant.register_module(Scaled, QScaled)
    rquant.register_module(LowRank)(QLowRank)
    yield
    registry._registrations[:], registry._classes = before


def rounded(weight, **scheme):
    return rquant.quantize_tensor(weight.detach(), "int4", **scheme).dequantize()


def reference(model):
    """The float model with every matrix rounded as int4 in groups of 16."""
    for parameter in (model.low.down, model.low.up, model.scaled.weight, model.plain.weight):
        parameter.data = rounded(parameter, axis=0, group_size=16)
    return model


def test_they_compute_as_the_rounded_model_and_come_back_from_files(tmp_path):
    model, x = Model(), torch.randn(3, 64)
    want = reference(Model())(x)
    report = rquant.quantize(model, "int4", group_size=16)
    assert {row.name for row in report.quantized} == {"low.down", "low.up", "scaled", "plain"}
    assert {row.name: row.note for row in report.floating} == {"low": "its weights are in its parts"}
    assert report.bytes_before == sum(p.nbytes for p in Model().parameters())
    assert model.again is model.low
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
    unfrozen = rquant.requantize(Model(), model.state_dict(), rquant.quantization_map(model))
    assert torch.equal(unfrozen(x), model(x))
    rquant.freeze(model)
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
    parts = [
        t for name, t in model.state_dict().items() if not name.startswith("again") and name != "low.shift"
    ]
    assert report.bytes_after == sum(part.nbytes for part in parts)
    assert not any(name.endswith((".down", ".up")) for name in model.state_dict())
    rquant.save(model, tmp_path / "m.safetensors")
    qmap = json.loads(json.dumps(rquant.quantization_map(model)))
    with torch.device("meta"):
        skeletons = Model(), Model()
    loaded = rquant.load(tmp_path / "m.safetensors", skeletons[0])
    again = rquant.requantize(skeletons[1], model.state_dict(), qmap)
    for twin in (loaded, again, rquant.load(tmp_path / "m.safetensors", unfrozen)):
        assert torch.equal(twin(x), model(x))
        assert twin.again is twin.low
        assert type(twin.low) is QLowRank
    other = Model()
    other.low = other.again = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="'again': expected a module that QLowRank is made of, got Linear"):
        rquant.load(tmp_path / "m.safetensors", other)


def test_nothing_inside_chosen_leaves_the_module_as_it_is():
    model = Model()
    low = model.low
    report = rquant.quantize(model, exclude=["low", "again"])
    assert model.low is model.again is low
    assert {row.name: row.note for row in report.floating} == {"low": "excluded by 'low'"}
    with pytest.raises(ValueError, match=r"include: .*'low.side' matches nothing"):
        rquant.quantize(model, include="low.side")


def test_a_part_can_be_left_float():
    model, x = Model(), torch.randn(3, 64)
    rquant.quantize(model, "int4", exclude=["*.up"], group_size=16)
    rquant.freeze(model)
    assert type(model.low.up) is nn.Linear
    want = Model()
    for parameter in (want.low.down, want.scaled.weight, want.plain.weight):
        parameter.data = rounded(parameter, axis=0, group_size=16)
    torch.testing.assert_close(model(x), want(x), rtol=1e-4, atol=1e-5)


def test_the_root_can_be_a_module_of_several_weights(tmp_path):
    model, x = LowRank(), torch.randn(3, 64)
    rquant.quantize(model)
    assert type(model) is QLowRank
    rquant.freeze(model)
    rquant.save(model, tmp_path / "m.safetensors")
    assert torch.equal(rquant.load(tmp_path / "m.safetensors", LowRank())(x), model(x))


def test_an_option_goes_to_the_class_that_takes_it_and_into_the_map():
    model, x = Model(), torch.randn(3, 64)
    rquant.quantize(model, rules=[("scaled", {"strength": 2})])
    rquant.freeze(model)
    qmap = json.loads(json.dumps(rquant.quantization_map(model)))
    assert qmap["modules"]["scaled"]["strength"] == 2
    assert "strength" not in qmap["modules"]["plain"]
    twin = rquant.requantize(Model(), model.state_dict(), qmap)
    assert twin.scaled.strength == 2
    assert torch.equal(twin(x), model(x))


def test_nan_in_a_part_is_named_and_leaves_the_model_alone():
    model = Model()
    model.low.up.data[3, 5] = torch.nan
    with pytest.raises(ValueError, match=r"low.up.weight: .*\[3, 5\]"):
        rquant.quantize(model)
    assert type(model.low) is LowRank


def test_by_default_false_waits_to_be_named():
    rquant.register_module(Scaled, QScaled, by_default=False)
    model = Model()
    report = rquant.quantize(model)
    assert {row.name: row.note for row in report.floating}["scaled"] == "Scaled: by include, or when tied"
    rquant.quantize(model, include="scaled")
    assert isinstance(model.scaled, QScaled)


def test_a_subclass_with_a_forward_of_its_own_needs_a_registration_of_its_own():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class QDoubled(rquant.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model, x = nn.Sequential(Doubled(8, 4)), torch.randn(2, 8)
    rquant.quantize(model)
    assert type(model[0]) is Doubled
    rquant.register_module(Doubled, QDoubled)
    y = model(x)
    rquant.quantize(model)
    rquant.freeze(model)
    assert type(model[0]) is QDoubled
    assert 0 < (model(x) - y).abs().max() < 0.1


def test_a_forward_replaced_on_the_object_is_left_alone():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].forward = lambda x: x
    report = rquant.quantize(model)
    assert report.floating[0].note == "Linear has a forward of its own"


def test_an_unknown_class_in_a_map_is_named():
    model = Model()
    rquant.quantize(model)
    rquant.freeze(model)
    state, qmap = model.state_dict(), rquant.quantization_map(model)
    del registry._classes["QLowRank"]
    with pytest.raises(ValueError, match=r"'again': expected a known class, got 'QLowRank'.*register_module"):
        rquant.requantize(Model(), state, qmap)
    with pytest.raises(
        ValueError, match=r"low: expected a class known to rquant.register_module, got QLowRank"
    ):
        rquant.quantization_map(model)


def test_what_cannot_be_registered():
    with pytest.raises(TypeError, match=r"float_type: .*'Scaled'"):
        rquant.register_module("Scaled", QScaled)
    with pytest.raises(TypeError, match=r"float_type: .*int"):
        rquant.register_module(int, QScaled)
    with pytest.raises(TypeError, match=r"quantized: .*Scaled"):
        rquant.register_module(Scaled, Scaled)
    with pytest.raises(ValueError, match=r"quantized: .*'Linear' is rquant\.nn\.linear\.Linear"):
        rquant.register_module(Scaled, type("Linear", (QScaled,), {}))


class Wrapped(nn.Module):
    """A weight of its own, and inside it a module of several."""

    def __init__(self):
        super().__init__()
        self.mix, self.low = nn.Parameter(torch.randn(64, 64) / 8), LowRank()

    def forward(self, x):
        return self.low(x @ self.mix.T)


class QWrapped(Container):
    @classmethod
    def split(cls, module):
        made = cls.like(module, without=("mix",))
        made.mix = cls.linear(module.mix)
        return made

    def forward(self, x):
        return self.low(self.mix(x))


@pytest.mark.parametrize("root", [True, False])
def test_one_inside_another(root, tmp_path):
    rquant.register_module(Wrapped, QWrapped)
    torch.manual_seed(0)
    model, x = Wrapped() if root else nn.Sequential(Wrapped()), torch.randn(3, 64)
    skeleton, y = copy.deepcopy(model), model(x)
    rquant.quantize(model)
    rquant.freeze(model)
    kinds = [type(module) for module in model.modules()]
    assert (kinds.count(QWrapped), kinds.count(QLowRank), kinds.count(rquant.Linear)) == (1, 1, 3)
    assert 0 < (model(x) - y).abs().max() < 0.05 * y.abs().max()
    rquant.save(model, tmp_path / "m.safetensors")
    assert torch.equal(rquant.load(tmp_path / "m.safetensors", skeleton)(x), model(x))
