"""torch in float32, channels-last, as it is and with BatchNorm folded; and rquant's static int8."""

import copy
from collections.abc import Iterator
from functools import partial
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import rquant

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


def static(model: nn.Module, pictures: Tensor) -> nn.Module:
    """BatchNorm folded, int8 throughout."""
    net = copy.deepcopy(model)
    rquant.fold_bn(net, pictures[:1])
    rquant.quantize(net, activations="int8")
    rquant.calibrate(net, pictures.split(8), method="minmax")
    rquant.freeze(net)
    return net


def quantized(model: nn.Module, pictures: Tensor, x: Tensor) -> Run:
    """As it comes: the network's own Python decides what runs."""
    return called(static(model, pictures), x)


def quantized_traced(model: nn.Module, pictures: Tensor, x: Tensor) -> Run:
    """The same operators without Python between them."""
    net, x = static(model, pictures), x.contiguous(memory_format=torch.channels_last)
    net = torch.jit.freeze(torch.jit.trace(net, x, check_trace=False).eval())
    net(x)
    return lambda: net(x)


def quantized_packaged(model: nn.Module, pictures: Tensor, x: Tensor) -> Run:
    """The same as torch compiles it ahead of time, from `torch.export`."""
    net, x = static(model, pictures), x.contiguous(memory_format=torch.channels_last)
    with TemporaryDirectory() as folder, torch.inference_mode(False), torch.no_grad():
        file = f"{folder}/net.pt2"
        torch._inductor.aoti_compile_and_package(torch.export.export(net, (x,)), package_path=file)
        return partial(torch._inductor.aoti_load_package(file), x)


def arms(threads: int) -> Iterator[Arm]:
    yield Arm("float32", float32)
    yield Arm("float32 folded", folded)
    yield Arm("float32 traced", traced)
    yield Arm("rquant", quantized)
    yield Arm("rquant traced", quantized_traced)
    yield Arm("rquant packaged", quantized_packaged)
