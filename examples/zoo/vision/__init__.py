"""Convolutional networks as their papers draw them and as people write them, with random weights that behave.

`full(name)` is the paper's size for 224x224 pictures; `small(name)` has the same structure in few channels, for 32x32
ones. Functional relu, `+=`, `torch.cat`, views and adaptive pooling stand where such code has them: none of it was written with
quantization in mind.
"""

from collections.abc import Callable

from torch import nn

from .googlenet import GoogLeNet
from .inception import Inception3
from .mobilenet import MobileNetV2
from .resnet import ResNet, resnet18, resnext50
from .scenes import scenes
from .shufflenet import ShuffleNetV2
from .weights import randomize

__all__ = ["FULL", "SMALL", "full", "scenes", "small"]

FULL: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "resnext50": resnext50,
    "googlenet": GoogLeNet,
    "inception_v3": Inception3,
    "mobilenet_v2": MobileNetV2,
    "shufflenet_v2": ShuffleNetV2,
}

SMALL: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: ResNet([1, 1, 1], width=16, classes=10),
    "resnext50": lambda: ResNet([1, 1], width=16, classes=10, groups=4, group_width=4),
    "googlenet": lambda: GoogLeNet(divisor=8, classes=10, blocks=3),
    "inception_v3": lambda: Inception3(divisor=8, classes=10, large=False),
    "mobilenet_v2": lambda: MobileNetV2(width=0.25, classes=10, stages=3),
    "shufflenet_v2": lambda: ShuffleNetV2([24, 48, 96], [2, 2], last=64, classes=10),
}


def full(name: str, seed: int = 0) -> nn.Module:
    """One of `FULL`, in eval mode, for `[n, 3, 224, 224]`."""
    return randomize(FULL[name], size=224, seed=seed)


def small(name: str, seed: int = 0) -> nn.Module:
    """One of `SMALL`, in eval mode, for `[n, 3, 32, 32]`: 10 classes."""
    return randomize(SMALL[name], size=32, seed=seed)
