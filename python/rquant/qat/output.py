"""`model(data).dequantize()` while training: torch's own has no derivative, and raises in `backward`."""

from typing import Any

import torch
from torch import Tensor, nn


class Output(Tensor):
    """A float tensor with a `dequantize()` that gradients pass. What any other operation makes of it is a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def dequantize(self) -> Tensor:
        """The same values as a plain tensor."""
        return self.as_subclass(Tensor)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dequantize().__reduce_ex__(protocol)


def mark_outputs(model: nn.Module) -> None:
    """Have the model return `Output`, from now on, where a gradient may be asked for; twice is once.

    A tensor is marked, and tensors directly in a tuple, list or dict, transformers' outputs among them. Without grad mode
    torch's own `dequantize` does. Compiled and traced models return plain tensors: they cannot hold the class.
    """
    if _mark not in model._forward_hooks.values():
        model.register_forward_hook(_mark)


def _mark(module: nn.Module, args: Any, output: Any) -> Any:
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return output
    if isinstance(output, dict):  # a ModelOutput shows its entries as attributes too: it stays itself
        for key, value in output.items():
            if (marked := _marked(value)) is not value:
                output[key] = marked
        return output
    if isinstance(output, tuple | list):
        values = [_marked(value) for value in output]
        return output._make(values) if hasattr(output, "_make") else type(output)(values)
    return _marked(output)


def _marked(value: Any) -> Any:
    plain = type(value) is Tensor and value.is_floating_point() and value.requires_grad
    return value.as_subclass(Output) if plain else value
