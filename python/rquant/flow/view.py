"""Parts of an activation: torch has them in the memory of the whole, so that a change in place of either changes both."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .value import Moved, Value


class View(NamedTuple):
    """How an `Activation` was made of `whole` by moving elements: `func(whole, *args, **kwargs)`."""

    whole: Any
    func: Callable[..., Tensor]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    shape: torch.Size
    stay: bool
    """See `value.Moved`."""

    def made(self) -> Any:
        """The part, which remembers the whole; the whole does not keep it alive."""
        part = type(self.whole)(self.value())
        part.part_of = self
        self.whole.parts = (*(known for known in self.whole.parts if known() is not None), weakref.ref(part))
        return part

    def value(self) -> Value:
        """What the part is, as the whole is now."""
        whole = self.whole.value
        node = Moved(whole, self.func, self.args, self.kwargs, self.stay)
        return Value(whole.arithmetic, node, self.shape, whole.dtype)

    def __call__(self, tensor: Tensor) -> Tensor:
        """The part of a tensor like the whole."""
        return self.func(tensor, *self.args, **self.kwargs)

    def shares(self) -> bool:
        """Whether torch would have the part in the memory of the whole: `reshape` and `contiguous` may copy, `flip` does."""
        whole = memory_of(self.whole)
        part = self(whole)
        if torch.compiler.is_compiling():  # which knows of no storage; eager inference mode knows of no base
            return part is whole or part._base is (whole if whole._base is None else whole._base)
        return part.untyped_storage()._cdata == whole.untyped_storage()._cdata


def memory_of(x: Any) -> Tensor:
    """A tensor on "meta" that lies as torch would have this activation's."""
    if x.part_of is not None:
        return x.part_of(memory_of(x.part_of.whole))  # type: ignore[no-any-return]
    last = x.value.channels_last and len(x.shape) == 4
    memory = torch.channels_last if last else torch.contiguous_format
    return torch.empty(x.shape, device="meta", memory_format=memory)
