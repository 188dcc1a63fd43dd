"""Which method holds for which layer."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..observers import METHODS
from ..observers.methods import Method, observer_of
from ..patterns import matches_name

Overrides = Mapping[str, Method] | None


@dataclass(frozen=True)
class MethodChoice:
    """`method` for every layer but those whose name an override matches: a glob or `"re:..."`, the first one that does."""

    method: Method
    overrides: Mapping[str, Method] = field(default_factory=dict)

    @classmethod
    def of(cls, method: Method, overrides: Overrides) -> "MethodChoice":
        """Raises ValueError, naming the argument, for what is no method and no pattern."""
        observer_of(method)
        for pattern, other in (overrides or {}).items():
            observer_of(other, f"overrides[{pattern!r}]")
            try:
                matches_name(pattern, "")
            except re.error as error:
                raise ValueError(
                    f"overrides: expected a regular expression, got {pattern!r} ({error})"
                ) from None
        return cls(method, dict(overrides or {}))

    def of_layer(self, name: str) -> Method:
        """The method of the layer with this name."""
        for pattern, method in self.overrides.items():
            if matches_name(pattern, name):
                return method
        return self.method

    def check(self, names: Iterable[str]) -> None:
        """Raise ValueError for an override that matches none of the names."""
        known = list(names)
        for pattern in self.overrides:
            if not any(matches_name(pattern, name) for name in known):
                raise ValueError(
                    f"overrides: {pattern!r} matches nothing; layers that ran are {', '.join(known)}"
                )


def method_name(method: Method) -> str:
    """For tables and files: a factory is "custom"."""
    return method if isinstance(method, str) and method in METHODS else "custom"
