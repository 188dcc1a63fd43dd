"""torch in float32, channels-last, as it is and with BatchNorm folded; and rquant's static int8."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from . import Arm, Run


def called(net: nn.Module, x: Tensor) -> Run:
    """The network and its input channels-last."""
    net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    return lambda: net(x)


def float32(model: nn.Module, pictures: Tensor, x: Tensor) -> Run:
    return called(copy.deepcopy(model), x)


def folded(model: nn.Module, pictures: Tensor, x: Tensor) -> Run:
    from torch.fx.experimental.optimization import fuse

    return called(fuse(model), x)


def traced(model: nn.Module, pictures: Tensor, x: Tensor) -> Run:
    """What torch.jit makes of it for inference: BatchNorm and relu inside oneDNN's convolutions."""
    net = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    net = torch.jit.optimize_for_inference(torch.jit.trace(net, x, check_trace=False))
    net(x)
    return lambda: net(x)


def arms(threads: int) -> Iterator[Arm]:
    yield Arm("float32", float32)
    yield Arm("float32 folded", folded)
    yield Arm("float32 traced", traced)
