"""Which layer a BatchNorm can be folded into, and why it cannot."""

from collections import Counter
from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..nn import PackedWeight, Unpacked
from .observe import Observation

Names = Mapping[nn.Module, list[str]]


class Pairs:
    """The BatchNorms of a model and the layers before them, as `seen` in a run; `names` has every name of each module."""

    def __init__(self, names: Names, seen: Observation) -> None:
        self.names, self.seen = names, seen
        self.users = Counter(id(p) for m in names for p in m._parameters.values() if p is not None)

    def layer_before(self, norm: nn.Module) -> nn.Module | None:
        """The layer whose output `norm` got, if it ran once."""
        calls = self.seen.calls[norm]
        source = calls[0].source if len(calls) == 1 else None
        return None if source is None or isinstance(source.module, _BatchNorm) else source.module

    def why_not(self, norm: nn.Module) -> str:
        """Why `norm` stays; "" if it can be folded into `layer_before(norm)`."""
        layer = self.layer_before(norm)
        reason = self._of_norm(norm)
        if reason or layer is None:
            return reason or "its input is not the very output of a layer"
        reason = self._of_layer(layer)
        if reason:
            return f"{self.names[layer][0]}: {reason}"
        [call] = self.seen.calls[layer]
        if call.kept:
            return f"the output of {self.names[layer][0]} is kept or returned, too"
        if any(reader is not norm for reader in call.readers):
            return f"the output of {self.names[layer][0]} has another reader"
        weight = layer._parameters["weight"]
        if (
            weight is not None and call.dim != weight.dim()
        ):  # of [N, L, C] or [C, L] the channels are not dimension 1
            return (
                f"{self.names[layer][0]} gives {call.dim} dimensions, of which the second is not its channels"
            )
        return ""

    def _of_norm(self, norm: nn.Module) -> str:
        return (
            self._of_calls(norm)
            or _own_forward(norm)
            or ("uses the batch's own statistics" if norm.running_mean is None else "")
            or ("stays in training mode" if self.seen.calls[norm][0].training else "")
            or ("its hooks see its input" if _hooks(norm, "_forward_pre", "_backward") else "")
        )

    def _of_layer(self, layer: nn.Module) -> str:
        if isinstance(layer, PackedWeight) and layer.frozen:
            return "frozen"
        if layer._parameters.get("weight") is None:
            return "its weight is computed (parametrization, pruning)"
        own = _own_forward(layer)
        hooks = _hooks(layer, "_forward_hooks", "_backward")
        return self._of_calls(layer) or own or ("its hooks see its output" if hooks else "")

    def _of_calls(self, module: nn.Module) -> str:
        """What holds for both: one name, one call, parameters that nothing else uses."""
        _, *others = self.names[module]
        if others:
            return f"shared with {others[0]}"
        if any(self.users[id(p)] > 1 for p in module._parameters.values()):
            return "its parameters are shared"
        if (runs := len(self.seen.calls[module])) != 1:
            return f"runs {runs} times" if runs else "does not run on the sample"
        if any(reader is not module for reader in self.seen.readers[module]):
            return "its parameters are read elsewhere"
        return ""


def _own_forward(module: nn.Module) -> str:
    """A subclass of torch's class may compute something else; not one of ours."""
    if isinstance(module, PackedWeight | Unpacked):
        return ""
    base = next(cls for cls in type(module).__mro__ if cls.__module__.startswith("torch.nn.modules."))
    ours = ("forward" in module.__dict__) or any(
        getattr(type(module), name, None) is not getattr(base, name, None)
        for name in ("forward", "_conv_forward")
    )
    return f"{type(module).__name__} has a forward of its own" if ours else ""


def _hooks(module: nn.Module, *kinds: str) -> bool:
    return any(value for name, value in module.__dict__.items() if "hook" in name and name.startswith(kinds))
