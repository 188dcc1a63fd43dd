"""MobileNetV2. Sandler et al., MobileNetV2: inverted residuals and linear bottlenecks, 2018, arXiv:1801.04381."""

from torch import Tensor, nn

# expansion, channels, blocks, stride of the first: table 2 of the paper
STAGES = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


def eights(channels: float) -> int:
    """The nearest multiple of 8."""
    return max(8, int(channels + 4) // 8 * 8)


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow without an activation; the input goes around where sizes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        inside = inputs * expansion
        widen = [*conv_bn(inputs, inside, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        filters = [*conv_bn(inside, inside, 3, stride, inside), nn.ReLU6(inplace=True)]
        self.conv = nn.Sequential(*widen, *filters, *conv_bn(inside, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        if self.residual:
            return x + self.conv(x)
        return self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, width: float = 1.0, classes: int = 1000, stages: int = len(STAGES)):
        super().__init__()
        channels = eights(32 * width)
        features = [*conv_bn(3, channels, 3, 2), nn.ReLU6(inplace=True)]
        for expansion, outputs, count, stride in STAGES[:stages]:
            outputs = eights(outputs * width)
            for block in range(count):
                features.append(InvertedResidual(channels, outputs, stride if block == 0 else 1, expansion))
                channels = outputs
        last = max(eights(1280 * width), 160)
        features += [*conv_bn(channels, last, 1), nn.ReLU6(inplace=True)]
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(x.reshape(x.shape[0], -1))
