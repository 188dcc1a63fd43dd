"""`prepare` and `convert`, and FX mode's names for them, beside torch's own."""

import copy
import warnings

import pytest
import torch
from torch import nn

import rquant
from rquant.compat import torch_ao
from rquant.compat.torch_ao import QConfig, QConfigMapping, convert, convert_fx, prepare, prepare_fx
from rquant.observers import MinMax

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ao = pytest.importorskip("torch.ao.quantization")
    fx = pytest.importorskip("torch.ao.quantization.quantize_fx")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


class Net(nn.Module):
    """As torch's tutorial has it: stubs, and a FloatFunctional for the addition."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.relu, self.skip = nn.ReLU(), torch.ao.nn.quantized.FloatFunctional()
        self.norm, self.fc = nn.LayerNorm(16), nn.Linear(16, 10)
        for norm in (self.bn1, self.bn2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.3, 3)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(self.quant(x))))
        x = self.relu(self.skip.add(self.bn2(self.conv2(x)), x))
        return self.dequant(self.fc(self.norm(x.mean((2, 3)))))


SAMPLES = list(torch.randn(5, 8, 3, 12, 12, generator=torch.Generator().manual_seed(0)))
LAYERS = {"conv1", "conv2", "fc"}
torch.backends.quantized.engine = "x86" if "x86" in torch.backends.quantized.supported_engines else "qnnpack"


def with_qconfig(qconfig):
    model = Net().eval()
    model.qconfig = qconfig
    return model


def static(model):
    """Names of the layers that have static scales."""
    return {name for name, m in model.named_modules() if getattr(m, "input_scale", None) is not None}


def run(model):
    for x in SAMPLES:
        model(x)


def no_more_error(ours, theirs, model):
    with torch.no_grad():
        x = torch.cat(SAMPLES)
        want = model(x)
        error, error_of_theirs = ((other(x) - want).norm() / want.norm() for other in (ours, theirs))
    assert 0 < error < 0.03
    assert error <= error_of_theirs


QCONFIGS = {
    "ours": torch_ao.get_default_qconfig("x86"),
    "torch's": ao.get_default_qconfig("x86"),
    "torch's, minmax": ao.default_qconfig,
    "ours, moving": QConfig(
        torch_ao.MovingAverageMinMaxObserver.with_args(averaging_constant=0.1),
        torch_ao.default_qconfig.weight,
    ),
    "rquant's": QConfig(MinMax, torch_ao.default_qconfig.weight),
}


@pytest.mark.parametrize("qconfig", QCONFIGS.values(), ids=QCONFIGS)
def test_prepare_calibrate_convert(qconfig):
    model = with_qconfig(qconfig)
    prepared = prepare(model)
    assert type(model.conv1) is nn.Conv2d
    run(prepared)
    converted = convert(prepared)
    assert static(converted) == LAYERS
    assert all(converted.get_submodule(name).frozen for name in LAYERS)
    # nothing observes any more, nothing is marked
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in converted.modules())
    assert not any(hasattr(m, "qconfig") for m in converted.modules())
    assert not any("Stub" in type(m).__name__ or "Observer" in type(m).__name__ for m in converted.modules())
    assert isinstance(converted.bn1, nn.Identity)
    assert isinstance(converted.bn2, nn.Identity)
    assert converted.conv1.flow
    assert converted.norm.flow
    with torch.no_grad():
        theirs = ao.prepare(ao.fuse_modules(with_qconfig(ao.get_default_qconfig("x86")), [["conv1", "bn1", "relu"], ["conv2", "bn2"]]))  # fmt: skip
        run(theirs)
    no_more_error(converted, ao.convert(theirs), model)


def test_observed_outputs_are_float_ones():
    prepared = prepare(with_qconfig(torch_ao.default_qconfig))
    want = Net().eval()(SAMPLES[0])
    torch.testing.assert_close(prepared(SAMPLES[0]), want, rtol=0.1, atol=0.02)  # weights are rounded


def test_scales_are_of_all_samples_by_the_method_named():
    x = SAMPLES
    lo, hi = min(t.min().item() for t in x), max(t.max().item() for t in x)
    prepared = prepare(with_qconfig(torch_ao.default_qconfig))
    run(prepared)
    assert prepared.conv1.input_scale.item() == pytest.approx((hi - lo) / 254)
    prepared = prepare(with_qconfig(QCONFIGS["ours, moving"]))
    prepared(x[0])
    prepared(x[1])
    width = 0.9 * (x[0].max() - x[0].min()) + 0.1 * (x[1].max() - x[1].min())
    assert prepared.conv1.input_scale.item() == pytest.approx(width.item() / 254)
    qconfig = QConfig(torch_ao.MinMaxObserver.with_args(qscheme=torch.per_tensor_symmetric), torch_ao.default_qconfig.weight)  # fmt: skip
    prepared = prepare(with_qconfig(qconfig))
    run(prepared)
    assert prepared.conv1.input_scale.item() == pytest.approx(max(-lo, hi) / 127)
    assert prepared.conv1.input_zero_point.item() == 0


def test_own_and_no_qconfigs_of_modules():
    model = with_qconfig(torch_ao.get_default_qconfig())
    model.fc.qconfig = None
    model.conv2.qconfig = torch_ao.default_qconfig
    prepared = prepare(model, inplace=True)
    assert prepared is model
    run(model)
    seen = {spot.layer: t.method for spot, t in model.rquant_prepared.calibration.statistics.tensors.items()}
    assert seen["conv1"] is rquant.observers.MSE
    assert seen["conv2"] is MinMax
    assert convert(model, inplace=True) is model
    assert static(model) == {"conv1", "conv2"}
    assert type(model.fc) is nn.Linear


def test_an_exception_changes_no_scale():
    prepared = prepare(with_qconfig(torch_ao.default_qconfig))
    prepared(SAMPLES[0])
    scale = prepared.conv1.input_scale.clone()
    with pytest.raises(RuntimeError):
        prepared(torch.randn(1, 4, 12, 12))
    assert torch.equal(prepared.conv1.input_scale, scale)
    prepared(SAMPLES[1])
    again = copy.deepcopy(prepared)
    run(again)
    assert convert(again)(SAMPLES[0]).shape == (8, 10)


MAPPINGS = {
    "ours": torch_ao.get_default_qconfig_mapping("x86"),
    "torch's": ao.get_default_qconfig_mapping("x86"),
    "dict": {"": torch_ao.default_qconfig},
}


@pytest.mark.parametrize("mapping", MAPPINGS.values(), ids=MAPPINGS)
def test_fx(mapping):
    model = Net().eval()
    prepared = prepare_fx(model, mapping, (SAMPLES[0],))
    assert isinstance(prepared.bn1, nn.Identity)
    run(prepared)
    converted = convert_fx(prepared)
    assert static(converted) == LAYERS
    theirs = fx.prepare_fx(model, ao.get_default_qconfig_mapping("x86"), (SAMPLES[0],))
    run(theirs)
    no_more_error(converted, fx.convert_fx(theirs), model)


def test_mappings_name_and_type():
    qconfig = torch_ao.default_qconfig
    mapping = QConfigMapping().set_object_type(nn.Conv2d, qconfig).set_module_name_regex("conv2", None)
    prepared = prepare_fx(Net(), mapping.set_module_name("fc", qconfig), SAMPLES[0])
    run(prepared)
    assert static(convert_fx(prepared)) == {"conv1", "fc"}


def test_observers_alone():
    x = torch.randn(1000)
    for ours, theirs in ((torch_ao.MinMaxObserver, ao.MinMaxObserver), (torch_ao.MovingAverageMinMaxObserver, ao.MovingAverageMinMaxObserver)):  # fmt: skip
        a, b = ours(), theirs()
        for batch in x.split(100):
            assert a(batch) is batch
            b(batch)
        scale, zero = a.calculate_qparams()
        want, _ = b.calculate_qparams()
        assert scale.item() == pytest.approx(want.item() * 255 / 254, rel=1e-4)
        assert -127 <= zero.item() <= 127


def prepared_twice():
    prepare(prepare(with_qconfig(torch_ao.default_qconfig)))


def never_called():
    convert(prepare(with_qconfig(torch_ao.default_qconfig)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prepare(Net()), "model: expected a qconfig on it or in it"),
        (lambda: prepare(nn.ReLU()), "model: expected a qconfig"),
        (lambda: prepare(with_qconfig("int8")), "conv1.qconfig: expected a QConfig or None, got 'int8'"),
        (lambda: prepare(with_qconfig(ao.default_dynamic_qconfig)), "dynamic one: that is quantize_dynamic"),
        (lambda: prepare(with_qconfig(torch_ao.default_dynamic_qconfig)), "that is quantize_dynamic"),
        (
            lambda: prepare(with_qconfig(ao.float16_static_qconfig)),
            r"conv1.qconfig.weight\(\).dtype: expected torch.qint8",
        ),
        (
            lambda: prepare(with_qconfig(ao.default_debug_qconfig)),
            "expected HistogramObserver, .*got RecordingObserver",
        ),
        (lambda: prepare(Net(), allow_list=[nn.Linear]), "allow_list: expected None"),
        (prepared_twice, "got one that is prepared"),
        (never_called, "called on samples, got one that was not"),
        (lambda: convert(Net()), "expected a model that `prepare` returned"),
        (lambda: convert(Net(), mapping={}), "mapping: expected nothing"),
        (lambda: torch_ao.get_default_qconfig("cuda"), "backend: expected one of x86, .*got 'cuda'"),
        (lambda: prepare_fx(Net(), 3, SAMPLES[0]), "qconfig_mapping: expected a QConfigMapping, got 3"),
        (
            lambda: prepare_fx(Net(), QConfigMapping(), SAMPLES[0], backend_config={}),
            "backend_config: expected None",
        ),
    ],
)
def test_wrong_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call()
