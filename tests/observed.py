"""A network with something of everything that calibration meets, and images for it."""

import torch
from torch import nn

import rquant
from rquant import observers

METHODS = sorted(observers.METHODS)


class Net(nn.Module):
    """Convolutions with a skip, pooling, a layer that is called twice, one by keyword, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.shared = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)
        self.never = nn.Linear(4, 4)

    def forward(self, image, scale=1.0):
        x = self.first(image * scale).relu()
        x = (self.second(x) + x).relu()
        x = self.shared(torch.tanh(self.shared(x.mean((2, 3)))))
        return self.head(input=x)


def net(**arguments):
    torch.manual_seed(0)
    model = Net().eval()
    rquant.quantize(model, activations="int8", **arguments)
    return model


def images(count=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 8, 8, generator=g) * (1 + i) for i in range(count)]
