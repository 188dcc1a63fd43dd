"""Which modules of a model become quantized and how, which stay float and why."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .nn import Container, Unpacked
from .nn.linear import is_conv1d
from .nn.registry import registration_of, why_not
from .patterns import outward
from .qtypes import qint8
from .rules import Choice, Match, Rule, matches

Patterns = Match | Iterable[Match] | None


@dataclass(frozen=True)
class Target:
    """One weight to quantize, or one `Unpacked` module: how, and every (name, module) that uses it, the first one first."""

    users: list[tuple[str, nn.Module]]
    choice: Choice

    @property
    def weight(self) -> nn.Parameter:
        """The float weight that all users share."""
        return self.users[0][1]._parameters["weight"]  # type: ignore[return-value]


@dataclass
class Tree:
    """A model's modules by all their names, those of several weights taken apart; the model is as it was.

    `containers` has the parts' owners by name, and `whole` the float modules that they were.
    """

    modules: dict[str, nn.Module] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    whole: dict[str, nn.Module] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, split: dict[int, Container] | None = None) -> "Tree":
        """`split`: what modules, by `id`, were taken apart into before; then no others are."""
        tree, new = cls(), split is None
        split = split or {}

        def walk(name: str, module: nn.Module) -> None:
            registration = registration_of(module) if new and id(module) not in split else None
            if registration is not None and issubclass(registration.quantized, Container):
                split[id(module)] = registration.quantized.split(module)
            if id(module) in split:
                tree.whole[name] = module
                module = tree.containers[name] = split[id(module)]
            tree.modules[name] = module
            for key, child in module._modules.items():
                if child is not None:
                    walk(f"{name}.{key}" if name else key, child)

        walk("", model)
        return tree

    def means(self, match: Match, name: str) -> bool:
        """Whether `match` means the module of this name or one that it is inside of."""
        return any(
            matches(match, outer, module)
            for outer in outward(name)
            for module in (self.modules.get(outer), self.whole.get(outer))
            if module is not None
        )


class _Globs:
    """Patterns of one argument. A pattern means the modules it matches and all inside them."""

    def __init__(
        self, argument: str, patterns: Patterns, tree: Tree, names: Iterable[str], what: str
    ) -> None:
        one = isinstance(patterns, str | re.Pattern | type)
        self.patterns: list[Any] = [patterns] if one else list(patterns or ())  # type: ignore[arg-type]
        self.tree, names = tree, list(names)
        for pattern in self.patterns:
            if not any(tree.means(pattern, name) for name in names):
                raise ValueError(
                    f"{argument}: expected a glob over module names, {pattern!r} matches nothing{what}"
                )

    def find(self, name: str) -> Match | None:
        """The first pattern that matches."""
        return next((p for p in self.patterns if self.tree.means(p, name)), None)


def select(
    model: nn.Module, include: Patterns, exclude: Patterns, rules: list[Rule], default: Choice
) -> tuple[Tree, list[Target], dict[str, str]]:
    """The model taken apart, the targets in its order, and for every other module the reason it stays float.

    `exclude` and `include` say what may be quantized at all: by default the types registered so, what a rule names, and
    what is tied to those. Then the first rule that matches says how. A weight is quantized for all its users or for none.
    """
    tree = Tree.of(model)
    targets, kept = _select(tree, include, exclude, rules, default)
    unused = [
        name
        for name in tree.containers
        if not any(name in outward(user) for target in targets for user, _ in target.users)
    ]
    if unused:
        for name in unused:
            inside = (why for part, why in kept.items() if name in outward(part) and part != name)
            kept[name] = next(inside, kept.get(name, "no quantized form"))
        used = tree.containers.keys() - set(unused)
        tree = Tree.of(model, {id(tree.whole[name]): tree.containers[name] for name in used})
    return tree, targets, kept


def _select(
    tree: Tree, include: Patterns, exclude: Patterns, rules: list[Rule], default: Choice
) -> tuple[list[Target], dict[str, str]]:
    modules = tree.modules
    found_rules = {
        name: next((rule for rule in rules if tree.means(rule.match, name)), None) for name in modules
    }

    def choice_of(name: str) -> Choice:
        rule = found_rules[name]
        return default if rule is None or rule.choice is None else rule.choice

    able = {
        name: found
        for name, module in modules.items()
        if (found := registration_of(module)) is not None
        and (not issubclass(found.quantized, Unpacked) or choice_of(name).options["activations"] == qint8)
    }
    included = _Globs("include", include, tree, able, " that can be quantized")
    excluded = _Globs("exclude", exclude, tree, modules, "")
    for i, rule in enumerate(rules):
        among = modules if rule.choice is None else able
        if not any(tree.means(rule.match, name) for name in among):
            what = "" if rule.choice is None else " that can be quantized"
            raise ValueError(f"rules[{i}]: expected a match among the modules, {rule} matches nothing{what}")

    def refusal(name: str, module: nn.Module) -> str | None:
        if (pattern := excluded.find(name)) is not None:
            return f"excluded by {pattern!r}"
        if name not in able:
            return why_not(module)
        rule = found_rules[name]
        return f"left float by the rule {rule}" if rule is not None and rule.choice is None else None

    def wanted(name: str) -> bool:
        if included.patterns:
            return included.find(name) is not None
        return found_rules[name] is not None or able[name].by_default

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
            reason = (
                "not included" if included.patterns else f"{type(module).__name__}: by include, or when tied"
            )
        if reason is None and issubclass(able[name].quantized, Unpacked):
            targets.setdefault(id(module), Target([], choice_of(name))).users.append((name, module))
        elif reason is None:
            sharing = users[id(module._parameters["weight"])]
            refused = ((other, refusal(other, partner)) for other, partner in sharing)
            reason = next((f"tied to {other}: {why}" for other, why in refused if why), None)
            if len({is_conv1d(partner) for _, partner in sharing}) > 1:
                reason = "shared by Linear and Conv1D, one of them transposed"
            if reason is None and id(module._parameters["weight"]) not in targets:
                choice = _agreed([(other, found_rules[other]) for other, _ in sharing]) or default
                targets[id(module._parameters["weight"])] = Target(sharing, choice)
        if reason is not None:
            kept[name] = reason
    for target in targets.values():
        for name, _ in target.users:
            kept.pop(name, None)
    return list(targets.values()), kept


def _agreed(sharing: list[tuple[str, Rule | None]]) -> Choice | None:
    """What the rules of one weight's users say; None if they say nothing. Raises ValueError if they do not agree."""
    said = [(name, rule) for name, rule in sharing if rule is not None]
    for name, rule in said[1:]:
        first, of_first = said[0]
        if rule.choice != of_first.choice:
            raise ValueError(
                f"rules: expected one scheme for the weight that {first} and {name} share, got "
                f"{_scheme(of_first)} by {of_first} and {_scheme(rule)} by {rule}"
            )
    return said[0][1].choice if said else None


def _scheme(rule: Rule) -> str:
    return str(rule.choice and rule.choice.scheme)
