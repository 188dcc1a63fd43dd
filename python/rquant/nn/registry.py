"""Which float modules can be quantized, and what they become: one table, open to users."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from torch import nn

from .container import Container
from .packed_weight import PackedWeight
from .unpacked import Unpacked

Quantized = TypeVar("Quantized", bound=type[Any])
Match = type[nn.Module] | Callable[[nn.Module], bool]


@dataclass(frozen=True)
class Registration:
    """`quantized` takes the place of what `match` means; unless `by_default`, only where a user names it."""

    match: Match
    quantized: type[Any]
    by_default: bool

    def covers(self, module: nn.Module) -> bool:
        """Whether `module` is meant. A subclass with a forward of its own computes something else, and is not."""
        if "forward" in module.__dict__:
            return False
        if not isinstance(self.match, type):
            return self.match(module)
        return isinstance(module, self.match) and type(module).forward is self.match.forward  # type: ignore[attr-defined]


_registrations: list[Registration] = []
_classes: dict[str, type[Any]] = {}


@overload
def register_module(float_type: Match, *, by_default: bool = True) -> Callable[[Quantized], Quantized]: ...
@overload
def register_module(float_type: Match, quantized: Quantized, *, by_default: bool = True) -> Quantized: ...
def register_module(float_type: Match, quantized: type[Any] | None = None, *, by_default: bool = True) -> Any:
    """Have `rquant.quantize` turn modules of `float_type` into `quantized`; without `quantized`, a class decorator.

    `float_type` is a module class (its subclasses too, unless they have a forward of their own) or a function that tells
    for a module. The newest registration that covers a module holds, so a built-in one can be replaced. With
    `by_default=False` a module is chosen only by `include`, by a rule, or through a tie.

    `quantized` is one of three kinds. A `rquant.nn.PackedWeight` has one Parameter `weight` of 2 dimensions and offers
    `wrap(module, scheme, **options)`, `weight_shape` and `forward`. A `rquant.nn.Container` has several weights, in
    children, and offers `split(module)` and `forward`. A `rquant.nn.Unpacked` has none to pack, and is chosen only where
    activations are quantized. Files name the class, so a program that loads must register it.

    Raises TypeError for another kind of class, ValueError for a name that another class has.
    """
    if not (isinstance(float_type, type) and issubclass(float_type, nn.Module)) and (
        isinstance(float_type, type) or not callable(float_type)
    ):
        raise TypeError(f"float_type: expected a module class or a function of a module, got {float_type!r}")
    if quantized is None:
        return lambda cls: register_module(float_type, cls, by_default=by_default)
    if not (isinstance(quantized, type) and issubclass(quantized, PackedWeight | Container | Unpacked)):
        raise TypeError(
            f"quantized: expected a subclass of rquant.nn.PackedWeight, Container or Unpacked, got {quantized!r}"
        )
    name = quantized.__name__
    if name in _classes and not is_registered(quantized):
        raise ValueError(
            f"quantized: expected a class name of its own, {name!r} is {_full_name(_classes[name])}"
        )
    _classes[name] = quantized
    _registrations[:] = [known for known in _registrations if known.match != float_type]
    _registrations.insert(0, Registration(float_type, quantized, by_default))
    return quantized


def _full_name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def registration_of(module: nn.Module) -> Registration | None:
    """What holds for `module`: None for what is quantized already, is not registered, or is refused by its class."""
    found = _find(module)
    return found if found is not None and found.quantized.refusal(module) is None else None


def _find(module: nn.Module) -> Registration | None:
    if isinstance(module, PackedWeight | Container | Unpacked):
        return None
    return next((known for known in _registrations if known.covers(module)), None)


def why_not(module: nn.Module) -> str:
    """Why `registration_of(module)` is None."""
    if isinstance(module, PackedWeight | Unpacked):
        return "quantized before"
    if isinstance(module, Container):
        return "its weights are in its parts"
    if (found := _find(module)) is not None:
        unless = "no quantized form" if issubclass(found.quantized, Unpacked) else "can be quantized"
        return found.quantized.refusal(module) or unless
    types = [known.match for known in _registrations if isinstance(known.match, type)]
    if any(isinstance(module, cls) for cls in types):
        return f"{type(module).__name__} has a forward of its own"
    large = {key: p for key, p in module._parameters.items() if p is not None and p.ndim > 2}
    named = ", ".join(f"{key} {list(p.shape)}" for key, p in large.items())
    return f"no quantized form of {named}; see rquant.register_module" if named else "no quantized form"


def class_named(name: str) -> type[Any] | None:
    """The registered quantized class of this name."""
    return _classes.get(name)


def is_registered(cls: type[Any]) -> bool:
    """Whether files can name this quantized class; one that was defined again counts as the same."""
    return cls.__name__ in _classes and _full_name(_classes[cls.__name__]) == _full_name(cls)


def option_names() -> set[str]:
    """Names of the options that some registered class takes."""
    return {name for cls in _classes.values() for name in getattr(cls, "OPTIONS", ())}
