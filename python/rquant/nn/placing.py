"""Putting a quantized module where a float one was, or beside it."""

from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def take_hooks(new: nn.Module, old: nn.Module) -> None:
    """Take over the hooks (the very dicts, so that their handles still remove them) and the mode."""
    new.training = old.training
    for name in nn.Module().__dict__:
        if "hook" in name:
            new.__dict__[name] = old.__dict__[name]


def place(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Make `new` the submodule of this name (torch has `set_submodule` since 2.5 only); returns what is there now.

    The root, named "", cannot be replaced: it stays the object it is and becomes of `new`'s class and state.
    """
    if not name:
        object.__setattr__(model, "__dict__", new.__dict__)
        object.__setattr__(model, "__class__", type(new))
        return model
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, new)
    return new


def apart(new: Module) -> Module:
    """`new` with copies of the Parameters that it shares with the float module, which stays as it is."""
    for name, parameter in new._parameters.items():
        if parameter is not None:
            new._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    return new
