"""ResNet and ResNeXt.

He et al., Deep residual learning for image recognition, 2015, arXiv:1512.03385; Xie et al., Aggregated residual
transformations for deep neural networks, 2016, arXiv:1611.05431.
"""

import torch.nn.functional as F
from torch import Tensor, nn


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class Shortcut(nn.Sequential):
    """To another size: a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input goes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.downsample = None if same else Shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class GroupedBottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1; its output has twice the channels of the middle."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, middle: int):
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, middle, 1), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = convolution(middle, middle, 3, stride, groups), nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = convolution(middle, outputs, 1), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.downsample = None if same else Shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        return F.relu(out + identity)


class ResNet(nn.Module):
    """`blocks` a stage; with `groups` the blocks are ResNeXt's, whose first has `groups * group_width` channels inside."""

    def __init__(
        self, blocks: list[int], width: int = 64, classes: int = 1000, groups: int = 0, group_width: int = 4
    ):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, inputs = [], width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage * (4 if groups else 1)
            for block in range(count):
                stride = 2 if stage and not block else 1
                if groups:
                    middle = groups * group_width * 2**stage
                    stages.append(GroupedBottleneck(inputs, outputs, stride, groups, middle))
                else:
                    stages.append(BasicBlock(inputs, outputs, stride))
                inputs = outputs
        self.layers = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layers(x)).flatten(1)
        return self.fc(x)


def resnet18() -> ResNet:
    return ResNet([2, 2, 2, 2])


def resnext50() -> ResNet:
    """ResNeXt-50 32x4d."""
    return ResNet([3, 4, 6, 3], groups=32, group_width=4)
