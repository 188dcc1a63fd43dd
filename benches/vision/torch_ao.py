"""torch's own static int8: FX graph mode, both engines, BatchNorm and relu fused; as it comes, and traced and frozen.

Each engine with the settings that torch.ao has for it; `x86` calibrates to 7 bits, since its depthwise kernel saturates
at 8. Relu6 becomes relu, which torch.ao can fuse where it can't the other; the calibrated range ends where relu6 did.
"""

import copy
import warnings
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from . import Arm, Run


def quantized(engine: str, model: nn.Module, pictures: Tensor) -> nn.Module:
    """Histogram observers, per-channel weights: what torch.ao recommends for the engine."""
    from torch.ao.quantization import QConfigMapping, get_default_qconfig
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = engine
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, nn.ReLU(inplace=child.inplace).eval())
    mapping = QConfigMapping().set_global(get_default_qconfig(engine))
    prepared = prepare_fx(model, mapping, pictures[:1])
    prepared(pictures)
    return convert_fx(prepared)


def eager(engine: str, model: nn.Module, pictures: Tensor, x: Tensor) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that all of this is deprecated
        net = quantized(engine, model, pictures).to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)

    def run() -> Tensor:
        torch.backends.quantized.engine = engine
        return net(x)

    return run


def traced(engine: str, model: nn.Module, pictures: Tensor, x: Tensor) -> Run:
    """Without Python between the operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = quantized(engine, model, pictures).to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        net = torch.jit.freeze(torch.jit.trace(net, x, check_trace=False).eval())
        net(x)

    def run() -> Tensor:
        torch.backends.quantized.engine = engine
        return net(x)

    return run


def arms(threads: int) -> Iterator[Arm]:
    for engine in ("x86", "onednn"):
        yield Arm(f"torch.ao {engine}", partial(eager, engine))
        yield Arm(f"torch.ao {engine} traced", partial(traced, engine))
