"""`nn.LSTM`, `nn.GRU` and `nn.RNN` with quantized weights.

What comes of the input is one product over all steps; what comes of the state is one product a step.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from .recurrent_cells import Recurrent, State, step
from .registry import register_module


class _Layers(Recurrent):
    """Not a subclass of torch's: `torch.compile` refuses to trace these whole."""

    mode: str
    input_size: int
    hidden_size: int
    proj_size: int
    num_layers: int
    bidirectional: bool
    batch_first: bool
    dropout: float

    extra_repr = nn.RNNBase.extra_repr

    @classmethod
    def like(cls, module: nn.Module, without: Any = ()) -> "_Layers":
        """A new instance without torch's lists of the parameters."""
        made = super().like(module, without)
        for name in [name for name in made.__dict__ if name.startswith(("_flat_weight", "_all_weights"))]:
            del made.__dict__[name]
        return made

    def flatten_parameters(self) -> None:
        """Nothing: packed weights lie as their kernel reads them."""

    def _run(self, input: Tensor | PackedSequence, state: State | None) -> tuple[Any, State]:
        """What torch's forward returns, the state as a tuple."""
        if isinstance(input, PackedSequence):
            data, batch_sizes, order, back = input
            sizes = batch_sizes.tolist()
            state = self._initial(data, sizes[0], state)
            if order is not None:
                state = tuple(s.index_select(1, order) for s in state)
            out, state = self._layers(data, sizes, state)
            if back is not None:
                state = tuple(s.index_select(1, back) for s in state)
            return PackedSequence(out, batch_sizes, order, back), state
        if input.dim() not in (2, 3):
            raise ValueError(f"input: expected 2 or 3 dimensions, got shape {tuple(input.shape)}")
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        if not batched and state is not None:
            state = tuple(s.unsqueeze(1) for s in state)
        steps, n, _ = x.shape
        if not steps:
            raise ValueError(f"input: expected at least one step, got shape {tuple(input.shape)}")
        state = self._initial(x, n, state)
        out, state = self._layers(x.flatten(0, 1), [n] * steps, state)
        out = out.unflatten(0, (steps, n))
        if not batched:
            return out.squeeze(1), tuple(s.squeeze(1) for s in state)
        return (out.transpose(0, 1) if self.batch_first else out), state

    def _initial(self, x: Tensor, n: int, state: State | None) -> State:
        """Checked, or zeros: `[layers * directions, n, size]`."""
        if x.shape[-1] != self.input_size:
            raise ValueError(
                f"input: expected a last dimension of {self.input_size}, got shape {tuple(x.shape)}"
            )
        count = self.num_layers * (1 + self.bidirectional)
        sizes = [self.proj_size or self.hidden_size, self.hidden_size][: 1 + (self.mode == "LSTM")]
        if state is None:
            return tuple(x.new_zeros(count, n, size) for size in sizes)
        for tensor, size in zip(state, sizes, strict=True):
            if tensor.shape != (count, n, size):
                raise ValueError(f"hx: expected shape {(count, n, size)}, got {tuple(tensor.shape)}")
        return state

    def _layers(self, data: Tensor, sizes: list[int], state: State) -> tuple[Tensor, State]:
        """`data` `[sum of sizes, features]`: step after step, of each the sequences that are that long, longest first."""
        finals: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                data = F.dropout(data, self.dropout, self.training)
            outs = []
            for reverse in range(1 + self.bidirectional):
                own = tuple(s[len(finals)] for s in state)
                part = f"l{layer}" + "_reverse" * reverse
                out, final = self._direction(part, data, sizes, own, bool(reverse))
                outs.append(out)
                finals.append(final)
            data = torch.cat(outs, -1) if self.bidirectional else outs[0]
        return data, tuple(torch.stack(s) for s in zip(*finals, strict=True))

    def _direction(
        self, part: str, data: Tensor, sizes: list[int], first: State, reverse: bool
    ) -> tuple[Tensor, State]:
        from_input = self._modules[f"ih_{part}"](data).split(sizes)  # type: ignore[misc]
        hidden: Any = self._modules[f"hh_{part}"]
        project: Any = self._modules.get(f"hr_{part}")
        outs: list[Any] = [None] * len(sizes)
        ended = []  # states of sequences that are over
        steps = range(len(sizes))
        live = sizes[-1] if reverse else sizes[0]
        state = tuple(s[:live] for s in first)
        for t in reversed(steps) if reverse else steps:
            if sizes[t] < live:
                ended.append(tuple(s[sizes[t] :] for s in state))
                state = tuple(s[: sizes[t]] for s in state)
            elif sizes[t] > live:  # backwards, shorter sequences begin later
                state = tuple(torch.cat([s, f[live : sizes[t]]]) for s, f in zip(state, first, strict=True))
            live = sizes[t]
            state = step(self.mode, from_input[t], hidden(state[0]), state)
            if project is not None:
                state = project(state[0]), state[1]
            outs[t] = state[0]
        ended.append(state)
        return torch.cat(outs), tuple(torch.cat(s[::-1]) for s in zip(*ended, strict=True))


@register_module(nn.LSTM)
class LSTM(_Layers):
    """`nn.LSTM` whose matrices are children, named as torch's parameters are: `ih_l0`, `hh_l0`, `hr_l0_reverse` ...

    Made by `from_float` or `rquant.quantize`. Takes and returns what torch's does.
    """

    FLOAT = nn.LSTM

    def forward(
        self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """`(output, (h, c))`: `input` `[steps, n, input_size]`, `[n, steps, ...]` if `batch_first`, without n, or packed;
        h `[layers * directions, n, proj_size or hidden_size]` and c `[..., hidden_size]` before and after."""
        return self._run(input, hx)  # type: ignore[return-value]


class _OneState(_Layers):
    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """`(output, h)`: `input` `[steps, n, input_size]`, `[n, steps, ...]` if `batch_first`, without n, or packed; h
        `[layers * directions, n, hidden_size]` before and after."""
        out, (h,) = self._run(input, None if hx is None else (hx,))
        return out, h


@register_module(nn.GRU)
class GRU(_OneState):
    """`nn.GRU` whose matrices are children, named as torch's parameters are: `ih_l0`, `hh_l0` ..."""

    FLOAT = nn.GRU


@register_module(nn.RNN)
class RNN(_OneState):
    """`nn.RNN`, tanh or relu, whose matrices are children, named as torch's parameters are: `ih_l0`, `hh_l0` ..."""

    FLOAT = nn.RNN
