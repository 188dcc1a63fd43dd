"""`requantization="fixed"`: int8 outputs by an int32 bias, multiplier and shift, against float64 and the float32 scales."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import rquant
from rquant.nn.fixed_point import FixedPoint

EXACT = 2.0**-31
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-9, 1e3), st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.floats(-1e4, 1e4))
def test_multiplier_and_shift_are_the_ratio_of_scales(weight, scale, out, bias):
    one = [torch.tensor([v]) for v in (weight, scale, out, bias)]
    fixed = FixedPoint.of(*one[:3])
    exact = one[0].double() * one[1].double() / one[2].double()
    assert 1 <= fixed.shift.item() <= 62
    if 2.0**-31 < exact < 2.0**30:
        assert 2**30 <= fixed.multiplier.item() < 2**31
        assert abs(fixed.multiplier.double() / 2.0 ** fixed.shift.double() / exact - 1) <= EXACT
    unit = one[0].double() * one[1].double()
    want = (one[3].double() / unit).round().clamp(-(2.0**31) + 1, 2.0**31 - 1)
    assert fixed.whole(one[3]).item() == want.item()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, groups=16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2, bias=False)
        self.fc, self.head = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.depthwise(self.stem(x).relu())
        x = nn.functional.relu6(self.up(x)).mean((2, 3))
        return self.head(self.fc(x).relu())


X = torch.randn(7, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def calibrated(requantization=None, freeze=True, **how):
    torch.manual_seed(0)
    model = Block().eval()
    rquant.quantize(model, activations="int8", requantization=requantization, **how)
    rquant.calibrate(model, [X], method="minmax")
    if freeze:
        rquant.freeze(model)
    return model


class Seen(TorchDispatchMode):
    """What each op of rquant's returned, and every tensor of floats as large as an image or row of activations."""

    def __init__(self):
        super().__init__()
        self.codes, self.floats = {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.rquant.conv_fixed_static.default:
            self.codes.setdefault(tuple(out.shape), []).append((args, out))
        if (
            isinstance(out, torch.Tensor)
            and out.is_floating_point()
            and not out.is_meta
            and out.shape[:1] == X.shape[:1]
        ):
            self.floats.append(tuple(out.shape))
        return out


def test_codes_are_those_of_exact_arithmetic_rounded_once():
    model = calibrated("fixed")
    with torch.no_grad(), Seen() as seen:
        model(X)
    assert sorted(seen.codes) == [(7, 8, 8, 8), (7, 12, 1, 1), (7, 16, 4, 4), (7, 16, 10, 10)]
    assert set(seen.floats) == {(7, 5)}  # what leaves, and NaN where it is due
    [(args, out)] = seen.codes[(7, 16, 10, 10)]
    x, x_zero, _, bias, *_, multiplier, shift, zero, lo, hi = args
    exact = nn.functional.conv2d(
        x.double() - x_zero, model.stem.dequantize().double() / weight_scale(model.stem), padding=1
    ).round()
    ratio = (multiplier.double() / 2.0 ** shift.double()).reshape(-1, 1, 1)
    want = ((exact + bias.reshape(-1, 1, 1)) * ratio).round() + zero
    assert torch.equal(out.double(), want.clamp(lo, hi))
    assert bias.dtype == multiplier.dtype == shift.dtype == torch.int32


def weight_scale(layer):
    return layer.state_dict()["weight_scale"].double().reshape(-1, 1, 1, 1)


def test_it_is_the_float_scales_but_for_the_last_bit():
    want, got = calibrated()(X), calibrated("fixed")(X)
    assert (got - want).norm() < 0.01 * want.norm()


def test_the_same_after_all_that_models_go_through(tmp_path):
    model, x = calibrated("fixed"), X
    with torch.no_grad():
        want = model(x)
        assert torch.equal(calibrated("fixed", freeze=False)(x), want)
        assert torch.equal(copy.deepcopy(model)(x), want)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), want)
        assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), want)
        assert torch.equal(torch.export.export(model, (x,)).module()(x), want)
        assert torch.equal(torch.jit.trace(model, x, check_trace=False)(x), want)
        rquant.save(model, tmp_path / "m.safetensors")
        with torch.device("meta"):
            skeleton = Block()
        again = rquant.load(tmp_path / "m.safetensors", skeleton).eval()
        assert again.stem.requantization == "fixed"
        assert torch.equal(again(x), want)
        model.stem.bias.data += 1  # what was computed of the old one is not kept
        assert not torch.equal(model(x), want)


def test_a_compiler_must_find_the_numbers_there():
    with pytest.raises(
        Exception, match="requantization: expected a model that was called before it is compiled"
    ):
        torch.export.export(calibrated("fixed"), (X,))
    with pytest.raises(RuntimeError, match="before it is compiled or traced"):
        torch.jit.trace(calibrated("fixed"), X)


def test_scales_that_change_are_looked_at_again():
    torch.manual_seed(0)
    model = Block().eval()
    rquant.quantize(model, activations="int8", requantization="fixed")
    calibration = rquant.calibrate(model, [X])
    rquant.freeze(model)
    with torch.no_grad():
        before = model(X)
        calibration.apply(model, "percentile", percentile=90.0)
        with pytest.raises(Exception, match="before it is compiled"):
            torch.export.export(model, (X,))
        want = model(X)
        assert not torch.equal(want, before)
        assert torch.equal(torch.export.export(model, (X,)).module()(X), want)


def test_where_it_does_not_concern_the_output_it_changes_nothing():
    for how in ({"weights": "int4"}, {"rules": [("*", {"weights": "int8", "group_size": 8})]}):
        assert torch.equal(calibrated("fixed", **how)(X), calibrated(**how)(X))
    assert "requantization" not in rquant.quantization_map(calibrated())["modules"]["stem"]


def test_by_a_rule():
    model = calibrated(rules=[("stem", {"weights": "int8", "requantization": "fixed"})])
    assert (model.stem.requantization, model.fc.requantization) == ("fixed", None)
    with pytest.raises(
        ValueError, match=r"rules\[0\]: requantization: expected None or 'fixed', got 'float'"
    ):
        rquant.quantize(Block(), rules=[("stem", {"requantization": "float"})])
    with pytest.raises(ValueError, match="requantization: expected None or 'fixed', got True"):
        rquant.quantize(Block(), requantization=True)
