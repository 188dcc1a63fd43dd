"""One run of a model, watched: which module got whose output, and who else read it. Nothing is traced or rewritten."""

import gc
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Readers = list[nn.Module | None]
"""In whose call each op was that read a tensor's memory; None: outside of the watched modules' calls."""


@dataclass(eq=False)
class Call:
    """One call of a watched module."""

    module: nn.Module
    source: "Call | None"
    """The call whose output, the very object, was its input."""
    training: bool
    """Whether the module was in training mode, though the model was not."""
    dim: int | None = None
    """Dimensions of its output; None for what is not a tensor."""
    readers: Readers = field(default_factory=list)
    """Of its output."""
    kept: bool = False
    """Whether somebody still had its output after the run: the model's caller, say."""


@dataclass
class Observation:
    """What a run of the model returned, and what it showed of the watched modules."""

    result: Any
    calls: dict[nn.Module, list[Call]]
    readers: dict[nn.Module, Readers]
    """Of a module's parameters and buffers."""


def run(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The model's output in eval mode, without gradients, on the same random numbers each time; modes are put back."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.is_cuda}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(0)
            return model.eval()(*args, **kwargs)
    finally:
        for module, training in modes:
            module.training = training


def observe(
    model: nn.Module, watched: Iterable[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Observation:
    """`run`, noting the calls of the watched modules and each op that reads their parameters, buffers or outputs."""
    calls: dict[nn.Module, list[Call]] = {module: [] for module in watched}
    own = {
        module: {_memory(t) for t in [*module._parameters.values(), *module._buffers.values()]}
        for module in calls
    }
    readers: dict[Any, Readers] = {key: [] for keys in own.values() for key in keys if key is not None}
    outputs: dict[int, tuple[Tensor, Call]] = {}  # by id; held, so that no id or memory means two of them
    inside: list[Call] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else next(iter(kwargs.values()), None)
        source = outputs[id(given)][1] if id(given) in outputs else None
        inside.append(Call(module, source, module.training))
        calls[module].append(inside[-1])

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = inside.pop()
        if isinstance(output, Tensor) and (key := _memory(output)) is not None:
            call.dim = output.dim()
            outputs[id(output)] = output, call
            readers[key] = call.readers

    def read(tensor: Tensor) -> None:
        if (key := _memory(tensor)) in readers:
            readers[key].append(inside[-1].module if inside else None)

    handles = []
    try:
        for module in calls:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        with _Reads(read):
            result = run(model, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    _mark_kept(outputs, result)
    of_module = {module: [who for key in own[module] for who in readers.get(key, ())] for module in calls}
    return Observation(result, calls, of_module)


def _mark_kept(outputs: dict[int, tuple[Tensor, Call]], result: Any) -> None:
    """Let go of the outputs, and see which of them stay."""
    returned = {id(leaf) for leaf in tree_leaves(result)}
    left = [(weakref.ref(output), call, key in returned) for key, (output, call) in outputs.items()]
    outputs.clear()
    if any(output() is not None for output, _, expected in left if not expected):
        gc.collect()  # slow; but what hangs in a dead cycle is kept by nobody
    for output, call, _ in left:
        call.kept = output() is not None


class _Reads(TorchDispatchMode):
    """Tells of every tensor that an op is given, whether Python or C++ calls it. Asking for a size is not an op."""

    def __init__(self, tell: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.tell(leaf)
        return func(*args, **(kwargs or {}))


def _memory(tensor: Any) -> int | None:
    """The same for tensors on one memory. None for what has none of the common kind: sparse tensors, wrappers, None."""
    try:
        return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]
    except (AttributeError, RuntimeError, ValueError):
        return None
