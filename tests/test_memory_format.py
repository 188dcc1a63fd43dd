"""Where the elements of outputs lie: as torch's layers leave them, so that a model's `view` goes on working."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import rquant


class Digits(nn.Module):
    """Of torch's tutorials: between convolution and head the image is flattened by `view`."""

    def __init__(self, images, between):
        super().__init__()
        conv = nn.Conv2d if images.dim() == 4 else nn.Conv1d
        self.conv1, self.conv2 = conv(3, 6, 3, padding=1), conv(6, 6, 3, padding=1)
        self.head = nn.Linear(6 * images[0, 0].numel(), 10)
        self.between = between

    def forward(self, x):
        x = self.conv2(functional.relu(self.conv1(x)))
        return self.head(self.between(x))


BETWEEN = {
    "int8": lambda x: x.view(-1, x[0].numel()),
    "clamped": lambda x: functional.relu(x.view(x.size(0), -1)),
    "float": lambda x: torch.sigmoid(x).view(x.size(0), -1),
    "then float": lambda x: torch.sigmoid(x.view(x.size(0), -1)),
    "by size": lambda x: x.view(size=(x.size(0), -1)),
    "bits": lambda x: x.view(torch.int32).view(torch.float32).view(x.size(0), -1),
    "in place": lambda x: x.view(x.size(0), -1).mul_(2),
}
IMAGES = {"images": (4, 3, 8, 8), "rows": (4, 3, 8)}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
@pytest.mark.parametrize("shape", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("calibrated", [True, False], ids=["static", "dynamic"])
def test_view_is_possible_where_it_was(between, shape, calibrated):
    torch.manual_seed(0)
    images = torch.randn(shape)
    plain = Digits(images, between).eval()
    model = copy.deepcopy(plain)
    rquant.quantize(model, activations="int8")
    if calibrated:
        rquant.calibrate(model, [images])
    rquant.freeze(model)
    with torch.no_grad():
        want, got = plain(images), model(images)
        assert (got - want).norm() < 0.05 * want.norm()
        assert torch.equal(torch.compile(model, backend="aot_eager")(images), got)


@pytest.mark.parametrize("calibrated", [True, False], ids=["static", "dynamic"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_output_lies_as_the_input_does(layout, calibrated):
    x = torch.randn(2, 3, 6, 6).to(memory_format=layout)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU()).eval()
    rquant.quantize(net, activations="int8")
    if calibrated:
        rquant.calibrate(net, [x])
    rquant.freeze(net)
    with torch.no_grad():
        assert net(x).is_contiguous(memory_format=layout)
