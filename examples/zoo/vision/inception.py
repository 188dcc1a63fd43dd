"""Inception-v3, without its auxiliary classifier. Szegedy et al., Rethinking the inception architecture for computer vision, 2015,
arXiv:1512.00567: figures 5 (blocks A), 6 (B, 7x1 and 1x7) and 7 (C, whose branches part again)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .googlenet import BasicConv


def chain(inputs: int, *steps: tuple) -> nn.Sequential:
    """Convolutions one after the other, each `(channels, kernel, stride=1, padding=half the kernel)`."""
    layers = []
    for channels, kernel, *rest in steps:
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        stride = rest[0] if rest else 1
        padding = rest[1] if len(rest) > 1 else tuple(size // 2 for size in kernel)
        layers.append(BasicConv(inputs, channels, kernel_size=kernel, stride=stride, padding=padding))
        inputs = channels
    return nn.Sequential(*layers)


class Parallel(nn.Module):
    """Branches beside each other, with one that only pools where `pool` says how much it keeps."""

    def __init__(self, branches: list[nn.Module], inputs: int, pool: int | None = None):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.pooled = None if pool is None else BasicConv(inputs, pool, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.branches]
        if self.pooled is None:
            outputs.append(F.max_pool2d(x, kernel_size=3, stride=2))
        else:
            outputs.append(self.pooled(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)))
        return torch.cat(outputs, 1)


class Forked(nn.Module):
    """1x3 and 3x1 of the same, beside each other."""

    def __init__(self, first: nn.Module, channels: int, outputs: int):
        super().__init__()
        self.first = first
        self.wide, self.high = chain(channels, (outputs, (1, 3))), chain(channels, (outputs, (3, 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return torch.cat([self.wide(x), self.high(x)], 1)


class Inception3(nn.Module):
    """`divisor` of every number of channels; not `large`: a stem of one convolution, for small pictures, and fewer blocks."""

    def __init__(self, divisor: int = 1, classes: int = 1000, large: bool = True):
        super().__init__()

        def d(channels: int) -> int:
            return channels // divisor

        def block_a(inputs: int, pool: int) -> Parallel:
            five = chain(inputs, (d(48), 1), (d(64), 5))
            threes = chain(inputs, (d(64), 1), (d(96), 3), (d(96), 3))
            return Parallel([chain(inputs, (d(64), 1)), five, threes], inputs, d(pool))

        def block_b(inside: int) -> Parallel:
            c, row, column = d(inside), (1, 7), (7, 1)
            once = chain(d(768), (c, 1), (c, row), (d(192), column))
            twice = chain(d(768), (c, 1), (c, column), (c, row), (c, column), (d(192), row))
            return Parallel([chain(d(768), (d(192), 1)), once, twice], d(768), d(192))

        def block_c(inputs: int) -> Parallel:
            once = Forked(chain(inputs, (d(384), 1)), d(384), d(384))
            twice = Forked(chain(inputs, (d(448), 1), (d(384), 3)), d(384), d(384))
            return Parallel([chain(inputs, (d(320), 1)), once, twice], inputs, d(192))

        if large:
            first = chain(3, (d(32), 3, 2, 0), (d(32), 3, 1, 0), (d(64), 3))
            second = chain(d(64), (d(80), 1), (d(192), 3, 1, 0))
            stem = [first, nn.MaxPool2d(3, 2), second, nn.MaxPool2d(3, 2)]
        else:
            stem = [chain(3, (d(192), 3, 2, 1))]
        a = [block_a(d(192), 32)]
        a += [block_a(d(256), 64), block_a(d(288), 64)] if large else []
        last_a = d(288) if large else d(256)
        threes = chain(last_a, (d(64), 1), (d(96), 3), (d(96), 3, 2, 0))
        shrink_a = Parallel([chain(last_a, (d(384), 3, 2, 0)), threes], last_a)
        between = d(384) + d(96) + last_a
        adapt = [] if between == d(768) else [chain(between, (d(768), 1))]
        b = [block_b(inside) for inside in ((128, 160, 160, 192) if large else (128,))]
        sevens = chain(d(768), (d(192), 1), (d(192), (1, 7)), (d(192), (7, 1)), (d(192), 3, 2, 0))
        shrink_b = Parallel([chain(d(768), (d(192), 1), (d(320), 3, 2, 0)), sevens], d(768))
        c = [block_c(d(1280))] + ([block_c(d(2048))] if large else [])
        self.layers = nn.Sequential(*stem, *a, shrink_a, *adapt, *b, shrink_b, *c)
        self.fc = nn.Linear(d(2048), classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.layers(x), 1)
        return self.fc(torch.flatten(x, 1))
