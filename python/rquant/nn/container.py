"""What modules of several weights become: a module whose matrices are children, each quantized like any other layer."""

from abc import abstractmethod
from collections.abc import Collection
from typing import TypeVar

from torch import Tensor, nn

Self = TypeVar("Self", bound="Container")


class Container(nn.Module):
    """Mixin of modules that keep each matrix in a child, an `nn.Linear`, `nn.Embedding` or any registered type.

    `split` makes one of the float module; `rquant.quantize` then chooses among the children, by their names, and
    replaces them. So `freeze`, `state_dict`, ties, `save` and the report see layers of one weight and nothing else.
    A subclass writes `split` and `forward`, and calls its children there rather than read their weights:

        @rquant.register_module(LowRank)
        class QuantizedLowRank(rquant.nn.Container):
            @classmethod
            def split(cls, module):
                made = cls.like(module, without=("down", "up"))
                made.down, made.up = cls.linear(module.down), cls.linear(module.up)
                return made

            def forward(self, x):
                return self.up(self.down(x))
    """

    @classmethod
    @abstractmethod
    def split(cls: type[Self], module: nn.Module) -> Self:
        """The float module taken apart, on the same memory; `module` stays as it is. May be on meta."""

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Why this `module`, of the registered type, cannot be taken apart; None if it can."""
        return None

    @classmethod
    def like(cls: type[Self], module: nn.Module, without: Collection[str] = ()) -> Self:
        """A new instance with the very attributes, parameters, buffers and children of `module`, hooks aside.

        `without` names the parameters, buffers and children that it is to have in another form.
        """
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        torchs = made.__dict__.keys() - {"training"}
        made.__dict__.update({name: value for name, value in module.__dict__.items() if name not in torchs})
        for kind in ("_parameters", "_buffers", "_modules"):
            own = {name: value for name, value in module.__dict__[kind].items() if name not in without}
            made.__dict__[kind].update(own)
        made._non_persistent_buffers_set.update(module._non_persistent_buffers_set)
        return made

    @staticmethod
    def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
        """A float layer on this very memory: weight `[n, k]`, a Parameter or a part of one, and bias `[n]`."""
        layer = nn.Linear.__new__(
            nn.Linear
        )  # its __init__ would make tensors for nothing, thousands of times in experts
        nn.Module.__init__(layer)
        layer.out_features, layer.in_features = weight.shape
        layer.weight = _parameter(weight)
        layer.register_parameter("bias", None if bias is None else _parameter(bias))
        return layer


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach(), tensor.requires_grad)
