"""Patterns over module names: globs, and regular expressions for all of a name as `"re:..."`."""

import fnmatch
import re
from collections.abc import Iterator


def matches_name(pattern: str, name: str) -> bool:
    """Whether the pattern means this very name. Raises re.error for a wrong regular expression."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return fnmatch.fnmatchcase(name, pattern)


def outward(name: str) -> Iterator[str]:
    """The name, those of the modules that it is inside of, and the root's, which is empty."""
    yield name
    while name:
        name = name.rpartition(".")[0]
        yield name
