"""`fuse_modules` and stubs beside torch's own."""

import copy
import warnings

import pytest
import torch
from torch import nn

from rquant.compat.torch_ao import DeQuantStub, QuantStub, QuantWrapper, fuse_modules, fuse_modules_qat

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ao = pytest.importorskip("torch.ao.quantization")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.up, self.up_bn = nn.ConvTranspose2d(8, 6, 3), nn.BatchNorm2d(6)
        self.last_bn, self.last_relu = nn.BatchNorm2d(6), nn.ReLU()
        self.head, self.head_bn = nn.Linear(6, 5), nn.BatchNorm1d(5)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.3, 3)

    def forward(self, x):
        x = self.relu(self.bn(self.conv(self.quant(x))))
        x = self.last_relu(self.last_bn(self.up_bn(self.up(x))))
        return self.dequant(self.head_bn(self.head(x.mean((2, 3)))))


LISTS = [["conv", "bn", "relu"], ["up", "up_bn"], ["last_bn", "last_relu"], ["head", "head_bn"]]


def test_the_same_weights_as_torch():
    model, x = Net().eval(), torch.randn(2, 3, 8, 8)
    want = model(x)
    theirs = ao.fuse_modules(copy.deepcopy(model), LISTS)
    ours = fuse_modules(model, LISTS)
    assert isinstance(model.bn, nn.BatchNorm2d)
    torch.testing.assert_close(ours.conv.weight, theirs.conv[0].weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.conv.bias, theirs.conv[0].bias, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.head.weight, theirs.head.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5)
    assert [type(m) for m in (ours.bn, ours.up_bn, ours.head_bn)] == [nn.Identity] * 3
    assert isinstance(
        ours.last_bn, nn.BatchNorm2d
    )  # without a layer before it there is nothing to fold it into


def test_one_list_in_place():
    model = Net().eval()
    assert fuse_modules(model, ["conv", "bn"], inplace=True) is model
    assert isinstance(model.bn, nn.Identity)


def test_what_trains_is_left_to_prepare_qat():
    model = Net()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    assert fuse_modules_qat(model, LISTS, inplace=True) is model
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([["conv", "norm"]], "'norm' is none of this model's"),
        ([["bn", "conv"]], r"expected convolution or Linear.*got bn \(BatchNorm2d\), conv \(Conv2d\)"),
        ([["conv", "relu", "bn"]], "in this order"),
        ([["conv", "bn"], ["conv", "bn"]], "expected each layer once"),
        ([["conv"]], "two of them or all"),
    ],
)
def test_wrong_lists(lists, message):
    model = Net().eval()
    with pytest.raises(ValueError, match=message):
        fuse_modules(model, [["up", "up_bn"], *lists], inplace=True)
    assert isinstance(model.up_bn, nn.BatchNorm2d)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="expected bn in eval mode"):
        fuse_modules(Net(), LISTS)


def test_stubs_pass_what_they_get():
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    layer.qconfig = ao.default_qconfig
    wrapped = QuantWrapper(layer.eval())
    assert torch.equal(wrapped(x), layer(x))
    assert wrapped.quant.qconfig is layer.qconfig
    assert not wrapped.training
    assert QuantStub()(x) is DeQuantStub()(x) is x
