"""ShuffleNetV2. Ma et al., ShuffleNet V2: practical guidelines for efficient CNN architecture design, 2018, arXiv:1807.11164."""

import torch
from torch import Tensor, nn


def shuffle(x: Tensor, groups: int = 2) -> Tensor:
    """Deal the channels out of `groups` heaps, one of each in turn."""
    n, channels, height, width = x.shape
    x = x.view(n, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(n, channels, height, width)


def pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def depthwise(channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


class Unit(nn.Module):
    """Half of the channels go through, half around (figure 3c); with stride 2 all go through both (3d)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        half = outputs // 2
        self.stride = stride
        if stride > 1:
            self.branch1 = nn.Sequential(*depthwise(inputs, stride), *pointwise(inputs, half))
        inside = inputs if stride > 1 else half
        self.branch2 = nn.Sequential(
            *pointwise(inside, half), *depthwise(half, stride), *pointwise(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return shuffle(out)


class ShuffleNetV2(nn.Module):
    """`channels` after the stem and after each stage; the defaults are the paper's 1x."""

    def __init__(
        self,
        channels: list[int] | None = None,
        blocks: list[int] | None = None,
        last: int = 1024,
        classes: int = 1000,
    ):
        super().__init__()
        inputs, *stages = channels or [24, 116, 232, 464]
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, inputs, 3, 2, 1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        units = []
        for outputs, count in zip(stages, blocks or [4, 8, 4], strict=True):
            units.append(Unit(inputs, outputs, 2))
            units += [Unit(outputs, outputs, 1) for _ in range(count - 1)]
            inputs = outputs
        self.stages = nn.Sequential(*units)
        self.conv5 = nn.Sequential(*pointwise(inputs, last))
        self.fc = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.maxpool(self.conv1(x)))
        x = self.conv5(x).mean([2, 3])
        return self.fc(x)
