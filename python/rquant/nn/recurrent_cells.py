"""`nn.LSTMCell`, `GRUCell` and `RNNCell` with quantized weights, and what recurrent layers share with them."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..qtypes import QType, qint8
from ..scheme import GroupSize
from .container import Container
from .linear import Linear
from .outliers import Outliers
from .registry import register_module

State = tuple[Tensor, ...]
"""`(h,)`, and `(h, c)` of an LSTM."""
Self = TypeVar("Self", bound="Recurrent")


def step(mode: str, from_input: Tensor, from_state: Tensor, state: State) -> State:
    """One step from both products, gates side by side in torch's order: the formulas of `nn.LSTM`, `nn.GRU`, `nn.RNN`.

    LSTM: Hochreiter and Schmidhuber 1997, <https://doi.org/10.1162/neco.1997.9.8.1735>, with forget gates; GRU: Cho et
    al. 2014, <https://arxiv.org/abs/1406.1078>.
    """
    if mode == "LSTM":
        i, f, g, o = (from_input + from_state).chunk(4, -1)
        c = torch.addcmul(i.sigmoid() * g.tanh(), f.sigmoid(), state[1])
        return o.sigmoid() * c.tanh(), c
    if mode == "GRU":
        size = state[0].shape[-1]
        both = (from_input[..., : 2 * size] + from_state[..., : 2 * size]).sigmoid()
        r, z = both.chunk(2, -1)
        n = torch.addcmul(from_input[..., 2 * size :], r, from_state[..., 2 * size :]).tanh()
        return (n + z * (state[0] - n),)
    total = from_input + from_state
    return (total.relu() if mode == "RNN_RELU" else total.tanh(),)


class Recurrent(Container):
    """Modules with parameters `weight_ih...`, `weight_hh...` and `bias_...`: each pair is a child, `ih...`, `hh...`.

    A child's weight and bias can be read by the names that torch has for them.
    """

    FLOAT: type[nn.Module]
    """Torch's class, which this one is made of."""

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Its weights may be parametrized."""
        names = vars(module).get("_flat_weights_names", ("weight_ih", "weight_hh"))
        computed = any(module._parameters.get(name) is None for name in names)
        return "its weight is computed (parametrization)" if computed else None

    @classmethod
    def split(cls: type[Self], module: nn.Module) -> Self:
        """One child per matrix, on the very Parameters."""
        own = module._parameters
        made = cls.like(module, without=own)
        for name, weight in own.items():
            kind, _, part = name.partition("_")
            if kind == "weight":
                made._modules[part] = layer = cls.linear(weight, own.get(f"bias_{part}"))  # type: ignore[arg-type]
                layer.training = module.training
        return made

    @classmethod
    def from_float(
        cls: type[Self],
        module: nn.Module,
        weights: QType | str = qint8,
        activations: QType | str | None = None,
        group_size: GroupSize = None,
        symmetric: bool | None = None,
        outliers: Outliers = None,
    ) -> Self:
        """A frozen module from torch's of the same name, which stays as it is; arguments as of `Linear.from_float`.

        Raises TypeError for another module, ValueError for NaN or infinity in a weight and for a parametrized one.
        """
        if not isinstance(module, cls.FLOAT) or isinstance(module, Container):
            raise TypeError(f"module: expected nn.{cls.FLOAT.__name__}, got {type(module).__name__}")
        if (why := cls.refusal(module)) is not None:
            raise ValueError(f"module: {why}")
        made = cls.split(module)
        for name, part in made._modules.items():
            try:
                made._modules[name] = Linear.from_float(
                    part,  # type: ignore[arg-type]
                    weights,
                    activations,
                    group_size,
                    symmetric,
                    outliers=outliers,
                )
            except ValueError as error:
                raise ValueError(f"{name}.{error}") from None
        return made

    def __getattr__(self, name: str) -> Any:
        kind, _, part = name.partition("_")
        child = self.__dict__.get("_modules", {}).get(part)
        return super().__getattr__(name) if child is None else getattr(child, kind)


class _Cell(Recurrent):
    def _next(self, mode: str, input: Tensor, state: State | None, states: int) -> State:
        """The next state, of `input` `[n, input_size]` or `[input_size]`; zeros before it by default."""
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"input: expected shape [n, {self.input_size}] or [{self.input_size}], got {tuple(input.shape)}"
            )
        shape = (*input.shape[:-1], self.hidden_size)
        if state is None:
            state = (input.new_zeros(shape),) * states
        for tensor in state:
            if tensor.shape != shape:
                raise ValueError(f"hx: expected shape {shape}, got {tuple(tensor.shape)}")
        return step(mode, self.ih(input), self.hh(state[0]), state)


@register_module(nn.LSTMCell)
class LSTMCell(_Cell, nn.LSTMCell):
    """`nn.LSTMCell` whose matrices are the children `ih` and `hh`."""

    FLOAT = nn.LSTMCell

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """`(h, c)`, each `[n, hidden_size]`, from `input` `[n, input_size]` and the `(h, c)` before; or all without n."""
        return self._next("LSTM", input, hx, 2)  # type: ignore[return-value]


@register_module(nn.GRUCell)
class GRUCell(_Cell, nn.GRUCell):
    """`nn.GRUCell` whose matrices are the children `ih` and `hh`."""

    FLOAT = nn.GRUCell

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """h `[n, hidden_size]` from `input` `[n, input_size]` and the h before; or all without n."""
        return self._next("GRU", input, None if hx is None else (hx,), 1)[0]


@register_module(nn.RNNCell)
class RNNCell(_Cell, nn.RNNCell):
    """`nn.RNNCell` whose matrices are the children `ih` and `hh`."""

    FLOAT = nn.RNNCell

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """h `[n, hidden_size]` from `input` `[n, input_size]` and the h before; or all without n."""
        mode = f"RNN_{self.nonlinearity.upper()}"
        return self._next(mode, input, None if hx is None else (hx,), 1)[0]
