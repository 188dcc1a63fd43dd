"""Which modules of a model become quantized, which stay float and why."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .nn import Embedding, Linear, PackedWeight
from .nn.linear import is_conv1d

Patterns = str | Iterable[str] | None


@dataclass(frozen=True)
class Target:
    """One weight to quantize: the class it becomes and every (name, module) that uses it, the first one first."""

    users: list[tuple[str, nn.Module]]

    @property
    def weight(self) -> nn.Parameter:
        """The float weight that all users share."""
        return self.users[0][1]._parameters["weight"]  # type: ignore[return-value]


def quantized_class(module: nn.Module) -> type[PackedWeight] | None:
    """What `module` can become. A subclass with its own forward computes something else, and is left alone."""
    if isinstance(module, PackedWeight) or module._parameters.get("weight") is None:
        return None
    if is_conv1d(module) or (isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward):
        return Linear
    if (
        isinstance(module, nn.Embedding)
        and type(module).forward is nn.Embedding.forward
        and module.max_norm is None
    ):
        return Embedding
    return None


def _why_not(module: nn.Module) -> str:
    if isinstance(module, PackedWeight):
        return "quantized before"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm rewrites its weight"
    if isinstance(module, nn.Linear | nn.Embedding):
        if module._parameters.get("weight") is None:
            return "its weight is computed (parametrization)"
        return f"{type(module).__name__} has a forward of its own"
    return "no quantized form"


class _Globs:
    """Patterns of one argument. A pattern means the modules it matches and all inside them."""

    def __init__(self, argument: str, patterns: Patterns, names: Iterable[str], what: str) -> None:
        self.patterns = [patterns] if isinstance(patterns, str) else list(patterns or ())
        names = list(names)
        for pattern in self.patterns:
            if not any(self._match(name, pattern) for name in names):
                raise ValueError(
                    f"{argument}: expected a glob over module names, {pattern!r} matches nothing{what}"
                )

    @staticmethod
    def _match(name: str, pattern: str) -> bool:
        parts = name.split(".")
        return any(fnmatch.fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))

    def find(self, name: str) -> str | None:
        """The first pattern that matches."""
        return next((p for p in self.patterns if self._match(name, p)), None)


def select(model: nn.Module, include: Patterns, exclude: Patterns) -> tuple[list[Target], dict[str, str]]:
    """Targets in the model's order, and for every other module with parameters of its own the reason it stays float.

    Linear and Conv1D by default, an Embedding by `include` or when it is tied to a selected Linear. A weight is quantized
    for all its users or for none.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    able = {name: module for name, module in modules.items() if quantized_class(module)}
    included = _Globs("include", include, able, " that can be quantized")
    excluded = _Globs("exclude", exclude, modules, "")

    def refusal(name: str, module: nn.Module) -> str | None:
        if (pattern := excluded.find(name)) is not None:
            return f"excluded by {pattern!r}"
        return None if name in able else _why_not(module)

    def wanted(name: str) -> bool:
        if included.patterns:
            return included.find(name) is not None
        return quantized_class(modules[name]) is Linear

    users: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in modules.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                users.setdefault(id(parameter), []).append((name, module))
    targets: dict[int, Target] = {}
    kept: dict[str, str] = {}
    for name, module in modules.items():
        reason = refusal(name, module)
        if reason is None and not wanted(name):
            reason = "not included" if included.patterns else "Embedding: by include, or when tied"
        if reason is None:
            sharing = users[id(module._parameters["weight"])]
            refused = ((other, refusal(other, partner)) for other, partner in sharing)
            reason = next((f"tied to {other}: {why}" for other, why in refused if why), None)
            if len({is_conv1d(partner) for _, partner in sharing}) > 1:
                reason = "shared by Linear and Conv1D, one of them transposed"
            if reason is None:
                targets.setdefault(id(module._parameters["weight"]), Target(sharing))
        if reason is not None:
            kept[name] = reason
    for target in targets.values():
        for name, _ in target.users:
            kept.pop(name, None)
    return list(targets.values()), kept
