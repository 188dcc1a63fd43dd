"""Random weights under which every layer sees values of the size that it would see after training."""

from collections.abc import Callable

import torch
from torch import nn

from .scenes import scenes

PICTURES = 8


@torch.no_grad()
def randomize(make: Callable[[], nn.Module], size: int, seed: int) -> nn.Module:
    """The network in eval mode: He initialization, BatchNorm with uneven gains and the statistics of pictures it was shown.

    Two things keep what tells pictures apart, as training would, where plain random layers blur it and multiply rounding
    errors instead: filters of one channel have a mean, and before a relu values lie rather above zero than below.
    He et al., Delving deep into rectifiers, 2015, arXiv:1502.01852.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make()
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.groups == module.in_channels:
                    nn.init.normal_(module.weight, mean=1.0)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.normal_(module.bias, std=0.1)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.0)
                nn.init.normal_(module.bias, mean=0.5, std=0.25)
                module.momentum = None  # the mean of all it has seen
        net.train()
        net(scenes(PICTURES, size, seed))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return net.eval().requires_grad_(False)
