"""Made-up pictures with the spectrum of real ones, each with light, contrast, colours and grain of its own."""

import torch
import torch.nn.functional as F
from torch import Tensor


def scenes(count: int, size: int, seed: int = 0) -> Tensor:
    """`[count, 3, size, size]` float32, normalized as photographs are: values mostly within 2.5 of zero."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(least: float, most: float, *shape: int) -> Tensor:
        return least + (most - least) * torch.rand(count, *shape, 1, 1, generator=generator)

    picture, grid, slope = torch.zeros(count, 3, size, size), 2, uniform(0.5, 2, 1)
    while grid < 2 * size:
        grain = torch.randn(count, 3, grid, grid, generator=generator) * grid**-slope
        picture += F.interpolate(grain, (size, size), mode="bilinear", align_corners=False)
        grid *= 2
    picture += uniform(0, 3, 1) * picture.mean(1, keepdim=True)  # mostly grey, some of them
    picture = picture / picture.std((1, 2, 3), keepdim=True)
    return (picture * uniform(0.4, 1.2, 3) + uniform(-1, 1, 3)).clamp(-2.2, 2.7)
