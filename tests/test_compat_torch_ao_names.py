"""torch.ao's one-call forms, its `FakeQuantize`, and the names that are not there."""

import copy
import warnings

import pytest
import torch
from torch import nn

from rquant.compat import torch_ao
from rquant.compat.torch_ao import FakeQuantize, QConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ao = pytest.importorskip("torch.ao.quantization")

X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def build():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    return nn.Sequential(*layers)


def run(model, batches):
    for x in batches:
        model(x)


def train(model, batches, optimizers):
    optimizer = optimizers(model.parameters(), 0.01)
    for x in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x.mean((2, 3)).argmax(1)).backward()
        optimizer.step()


def test_quantize_is_prepare_run_convert():
    model = build().eval()
    model.qconfig = torch_ao.default_per_channel_qconfig
    state = copy.deepcopy(model.state_dict())
    got = torch_ao.quantize(model, run, [X.split(16)])
    prepared = torch_ao.prepare(model)
    run(prepared, X.split(16))
    assert torch.equal(got(X), torch_ao.convert(prepared)(X))
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert torch_ao.quantize(model, run, [X.split(16)], inplace=True) is model


def test_quantize_qat_trains_and_converts():
    model = build()
    model.qconfig = torch_ao.default_qat_qconfig
    got = torch_ao.quantize_qat(model, train, [X.split(16), torch.optim.SGD])
    assert not got.training
    assert got[0].input_scale is not None
    assert type(got[1]) is nn.Identity
    assert type(model[0]) is nn.Conv2d


@pytest.mark.parametrize("symmetric", [False, True])
def test_fake_quantize_is_torchs_on_255_codes(symmetric):
    scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    arguments = {"averaging_constant": 0.5, "dtype": torch.qint8, "qscheme": scheme}
    ours = FakeQuantize.with_args(observer=torch_ao.MovingAverageMinMaxObserver)(**arguments)
    theirs = ao.FakeQuantize(ao.MovingAverageMinMaxObserver, quant_min=-127, quant_max=127, **arguments)
    for x in X.split(16):
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    ours.disable_observer()
    before = ours.calculate_qparams()
    x = (10 * X).requires_grad_()
    ours(x).sum().backward()
    assert ours.calculate_qparams() == before
    lo, hi = ours.activation_post_process.observer.range("int8", symmetric)
    inside = (x > lo * 0.99) & (x < hi * 0.99)
    outside = (x < lo * 1.01) | (x > hi * 1.01)
    assert inside.any()
    assert outside.any()
    assert (x.grad[inside] == 1).all()
    assert (x.grad[outside] == 0).all()
    ours.disable_fake_quant()
    assert ours(X) is X


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_qconfig_of_fake_quantize_means_its_observer():
    scales = []
    for module in (torch_ao, ao):
        activation = module.FakeQuantize.with_args(
            observer=module.MovingAverageMinMaxObserver, averaging_constant=1.0
        )
        model = build()
        model.qconfig = QConfig(activation, module.default_per_channel_weight_observer)
        prepared = torch_ao.prepare_qat(model)
        run(prepared.train(), (X + 1).split(16))
        scales.append(prepared[0].input_range.scale.item())
    last = X[-16:] + 1
    assert scales[0] == scales[1] == pytest.approx(((last.max() - last.min()) / 254).item(), rel=1e-6)


def test_every_name_is_there_or_says_what_to_use():
    names = {}
    exec("from rquant.compat.torch_ao import *", names)
    assert {name for name in names if name != "__builtins__"} == set(torch_ao.__all__)
    assert not set(torch_ao.INSTEAD) & set(torch_ao.__all__)
    own = {"QuantizedTensor", "quantize_per_channel", "quantize_per_tensor", "freeze_bn_stats"}
    fx = {"prepare_fx", "convert_fx", "prepare_qat_fx", "fuse_fx"}
    assert all(hasattr(ao, name) for name in {*torch_ao.__all__, *torch_ao.INSTEAD} - own - fx)
    for name, instead in torch_ao.INSTEAD.items():
        with pytest.raises(ImportError) as raised:
            exec(f"from rquant.compat.torch_ao import {name}")
        assert instead in str(raised.value)
    with pytest.raises(AttributeError, match=r"'rquant.compat.torch_ao' has no attribute 'qint3'"):
        torch_ao.qint3  # noqa: B018
