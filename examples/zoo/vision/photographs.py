"""Photographs that come inside the scikit-image and scikit-learn packages, cut into squares: no download."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import package_dir

# Disjoint, also in what they show: of the stereo pair of a motorcycle one is used.
CALIBRATION = (
    "skimage/data/astronaut.png",
    "skimage/data/coffee.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/coins.png",
    "skimage/data/gravel.png",
    "sklearn/datasets/images/china.jpg",
)
TEST = (
    "skimage/data/chelsea.png",
    "skimage/data/camera.png",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/flower.jpg",
)
SHARES = (1.0, 0.6)  # of the shorter side


def boxes(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Squares: the largest ones, and smaller ones in the corners and the middle."""
    found = []
    for share in SHARES:
        side = round(share * min(width, height))
        right, low = width - side, height - side
        corners = ((0, 0), (right, 0), (0, low), (right, low), (right // 2, low // 2))
        found += [(x, y, x + side, y + side) for x, y in corners]
    return iter(dict.fromkeys(found))


def squares(names: tuple[str, ...], size: int) -> Tensor:
    """`[n, 3, size, size]` float32, values 0 to 255: the squares of each photograph, one photograph after the other."""
    found = []
    for name in names:
        package, _, rest = name.partition("/")
        with Image.open(package_dir(package) / rest) as file:
            picture = file.convert("RGB")
        for box in boxes(*picture.size):
            square = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
            found.append(torch.from_numpy(np.array(square)).permute(2, 0, 1).float())
    return torch.stack(found)
