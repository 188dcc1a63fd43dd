"""Made-up pictures with the spectrum of real ones: much in large shapes, little in fine grain, normalized as usual."""

import torch
import torch.nn.functional as F
from torch import Tensor


def scenes(count: int, size: int, seed: int = 0) -> Tensor:
    """`[count, 3, size, size]` float32, about zero mean and unit spread a picture; of each seed the same."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.zeros(count, 3, size, size)
    grid = 2
    while grid < 2 * size:
        noise = torch.randn(count, 3, grid, grid, generator=generator) / grid
        picture += F.interpolate(noise, (size, size), mode="bilinear", align_corners=False)
        grid *= 2
    picture -= picture.mean((1, 2, 3), keepdim=True)
    return picture / picture.std((1, 2, 3), keepdim=True)
