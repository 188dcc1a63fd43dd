"""torch's own static int8: FX graph mode, both engines, BatchNorm and relu fused; as it comes, and traced and frozen. And
what torchao has instead of it: PT2E, compiled by Inductor.

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


def compiled(model: nn.Module, pictures: Tensor, x: Tensor) -> Run:
    """torchao's quantizer for x86 on the exported network, and torch.compile with its weights frozen."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    last = {"memory_format": torch.channels_last}
    x = x.contiguous(**last)
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")
        batches = pictures.clone().contiguous(**last)  # no longer an inference tensor
        program = torch.export.export(copy.deepcopy(model).to(**last), (batches[: len(x)],)).module()
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        net = prepare_pt2e(program, quantizer)
        for batch in batches.split(len(x)):
            net(batch)
        net = torch.compile(convert_pt2e(net))

    def run() -> Tensor:
        with torch._inductor.config.patch(freezing=True), torch.inference_mode(False), torch.no_grad():
            return net(x)

    return run


def arms(threads: int) -> Iterator[Arm]:
    for engine in ("x86", "onednn"):
        yield Arm(f"torch.ao {engine}", partial(eager, engine))
        yield Arm(f"torch.ao {engine} traced", partial(traced, engine))
    yield Arm("torchao PT2E", compiled)
