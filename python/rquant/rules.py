"""How each layer is to be quantized: the model-wide choice, and ordered rules that say otherwise for some layers."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .nn.fixed_point import resolve_requantization
from .nn.outliers import resolve_threshold
from .nn.registry import option_names
from .patterns import matches_name
from .qtypes import ACTIVATIONS, QType, qtype_of
from .scheme import GroupSize, Optimizer, Scheme

Match = str | re.Pattern[str] | type[nn.Module]
Wanted = str | QType | dict[str, Any] | bool | None
Rules = Iterable[tuple[Match, Wanted] | list[Any]] | None


@dataclass(frozen=True)
class Choice:
    """How a layer is quantized: its weight's scheme, and options of its class, which take what concerns them."""

    scheme: Scheme
    options: dict[str, Any]

    @classmethod
    def resolve(
        cls,
        weights: QType | str,
        activations: QType | str | None = None,
        group_size: GroupSize = None,
        symmetric: bool | None = None,
        optimizer: str | Optimizer = "minmax",
        outliers: float | None = None,
        requantization: str | None = None,
        **options: Any,
    ) -> "Choice":
        """From the arguments of `rquant.quantize`. Raises ValueError, naming the argument, for a value out of range."""
        scheme = Scheme.resolve(weights, group_size, symmetric, optimizer)
        activations = None if activations is None else qtype_of(activations, "activations", ACTIVATIONS)
        threshold = resolve_threshold(outliers, None if scheme.qtype.is_floating_point else activations)
        chosen = {"outliers": threshold, "requantization": resolve_requantization(requantization)}
        return cls(scheme, {"activations": activations, **chosen, **options})

    def __str__(self) -> str:
        return describe_scheme(self.scheme, self.options)


def describe_scheme(scheme: Scheme, options: dict[str, Any]) -> str:
    """In words, for a table: "qint4 affine group 64, activations qint8"."""
    said = {name: value.name if isinstance(value, QType) else value for name, value in options.items()}
    said = {name: f"{len(v)} columns" if isinstance(v, tuple | list) else v for name, v in said.items()}
    return ", ".join([str(scheme), *(f"{name} {value}" for name, value in said.items() if value is not None)])


def matches(match: Match, name: str, module: nn.Module | None) -> bool:
    """Whether `match` means the module of this name itself.

    A string is a glob over the name, or `"re:..."`, a regular expression for all of it, or `"type:..."`, a class's name
    with or without its module's.
    """
    if isinstance(match, type):
        return isinstance(module, match)
    if isinstance(match, re.Pattern):
        return match.fullmatch(name) is not None
    if match.startswith("type:"):
        return any(match[5:] in (cls.__name__, _full_name(cls)) for cls in type(module).__mro__)
    return matches_name(match, name)


def _full_name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@dataclass(frozen=True)
class Rule:
    """What `match` means, and everything inside it, gets `choice`; None leaves it float."""

    match: Match
    choice: Choice | None

    def __str__(self) -> str:
        return repr(_match_to_json(self.match))


def resolve_rules(rules: Rules, arguments: dict[str, Any]) -> list[Rule]:
    """The rules, what they leave unsaid filled in from the model-wide `arguments` of `Choice.resolve`.

    A rule that names `weights` starts from that type's own group size and symmetry. Raises ValueError that names the
    rule.
    """
    if rules is None:
        return []
    if isinstance(rules, str | dict) or not isinstance(rules, Iterable):
        raise ValueError(f"rules: expected a list of (match, scheme), got {rules!r}")
    made = []
    for i, rule in enumerate(rules):
        where = f"rules[{i}]"
        if not isinstance(rule, tuple | list) or len(rule) != 2:
            raise ValueError(f"{where}: expected a pair (match, scheme), got {rule!r}")
        match, wanted = rule
        if not (
            isinstance(match, str | re.Pattern) or (isinstance(match, type) and issubclass(match, nn.Module))
        ):
            raise ValueError(
                f"{where}: expected a glob, a regular expression or a module class, got {match!r}"
            )
        try:
            if isinstance(match, str) and match.startswith("re:"):
                re.compile(match[3:])
            made.append(Rule(match, _choice(wanted, arguments)))
        except re.error as error:
            raise ValueError(f"{where}: expected a regular expression, got {match!r} ({error})") from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return made


def _choice(wanted: Wanted, arguments: dict[str, Any]) -> Choice | None:
    if wanted is None or wanted is False:
        return None
    if not isinstance(wanted, dict):
        if not isinstance(wanted, str | QType):
            raise ValueError(f"scheme: expected None, a qtype or a dict of arguments, got {wanted!r}")
        wanted = {"weights": wanted}
    known = {"weights", "group_size", "symmetric", "optimizer"} | option_names()
    if unknown := sorted(wanted.keys() - known):
        raise ValueError(f"scheme: expected arguments among {', '.join(sorted(known))}, got {unknown[0]!r}")
    base = dict(arguments)
    if "weights" in wanted:
        base.pop("group_size", None)
        base.pop("symmetric", None)
    return Choice.resolve(**{**base, **wanted})


def rules_to_json(rules: Rules) -> list[list[Any]]:
    """The same rules in JSON types, which `rquant.quantize` takes as well.

    Raises ValueError for a regular expression with flags (write them inside: `(?i)...`).
    """
    return [[_match_to_json(match), _wanted_to_json(wanted)] for match, wanted in rules or ()]


def _match_to_json(match: Match) -> str:
    if isinstance(match, type):
        return f"type:{_full_name(match)}"
    if isinstance(match, re.Pattern):
        if match.flags & ~re.UNICODE:
            raise ValueError(f"rules: expected a regular expression without flags, got {match!r}")
        return f"re:{match.pattern}"
    return match


def _wanted_to_json(wanted: Wanted) -> Any:
    if isinstance(wanted, dict):
        return {key: _wanted_to_json(value) for key, value in wanted.items()}
    return wanted.name if isinstance(wanted, QType) else wanted
