"""GoogLeNet with BatchNorm in place of response normalization. Szegedy et al., Going deeper with convolutions, 2014,
arXiv:1409.4842; Ioffe and Szegedy, Batch normalization, 2015, arXiv:1502.03167."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# inputs, then what each branch makes: 1x1; 3x3 reduced, 3x3; 5x5 reduced, 5x5; after pooling (table 1 of the paper)
BLOCKS = [
    (192, 64, 96, 128, 16, 32, 32),
    (256, 128, 128, 192, 32, 96, 64),
    (480, 192, 96, 208, 16, 48, 64),
    (512, 160, 112, 224, 24, 64, 64),
    (512, 128, 128, 256, 24, 64, 64),
    (512, 112, 144, 288, 32, 64, 64),
    (528, 256, 160, 320, 32, 128, 128),
    (832, 256, 160, 320, 32, 128, 128),
    (832, 384, 192, 384, 48, 128, 128),
]
HALVED = (2, 7)  # blocks before which the picture is halved


class BasicConv(nn.Module):
    """Convolution, BatchNorm, relu."""

    def __init__(self, inputs: int, outputs: int, **options):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, bias=False, **options)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class InceptionBlock(nn.Module):
    """Four branches, one beside the other."""

    def __init__(self, inputs: int, one: int, to3: int, three: int, to5: int, five: int, pooled: int):
        super().__init__()
        self.branch1 = BasicConv(inputs, one, kernel_size=1)
        self.branch2 = nn.Sequential(
            BasicConv(inputs, to3, kernel_size=1), BasicConv(to3, three, kernel_size=3, padding=1)
        )
        self.branch3 = nn.Sequential(
            BasicConv(inputs, to5, kernel_size=1), BasicConv(to5, five, kernel_size=5, padding=2)
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), BasicConv(inputs, pooled, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """`divisor` of every number of channels; the first so many `blocks`."""

    def __init__(self, divisor: int = 1, classes: int = 1000, blocks: int = len(BLOCKS)):
        super().__init__()
        stem, wide = 64 // divisor, 192 // divisor
        self.conv1 = BasicConv(3, stem, kernel_size=7, stride=2, padding=3)
        self.conv2 = BasicConv(stem, stem, kernel_size=1)
        self.conv3 = BasicConv(stem, wide, kernel_size=3, padding=1)
        self.blocks = nn.ModuleList()
        inputs = wide
        for channels in BLOCKS[:blocks]:
            branches = [count // divisor for count in channels[1:]]
            self.blocks.append(InceptionBlock(inputs, *branches))
            inputs = branches[0] + branches[2] + branches[4] + branches[5]
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.conv3(self.conv2(x)), 3, 2, ceil_mode=True)
        for index, block in enumerate(self.blocks):
            if index in HALVED:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            x = block(x)
        x = torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1)
        return self.fc(self.dropout(x))
