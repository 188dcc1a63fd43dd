"""What a calibrated layer returns: it passes for a float tensor, and torch's functions take it."""

import weakref
from typing import Any

import torch
from torch import Tensor

from .functions import HANDLERS, METHODS, knows
from .value import Value
from .view import View

_TORCHS = {"axis": "dim", "keepdims": "keepdim"}
"""Torch's names of what it also takes by numpy's."""


class Activation:
    """Stands for a float tensor of which, in the end, perhaps only int8 codes are made (see `Value`).

    ReLU, clamps, additions of one another, concatenation, pooling and what only moves elements stay in int8; any other
    function or method of torch gets the floats. Not a subclass of `torch.Tensor`: it has no memory. `float()` is the tensor.
    """

    part_of: View | None = None
    """What it is a part of, if it is."""
    parts: tuple[weakref.ref["Activation"], ...] = ()

    def __init__(self, value: Value) -> None:
        self.value = value

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {_TORCHS.get(name, name): value for name, value in kwargs.items()} if kwargs else {}
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        handler = HANDLERS.get(func)
        if handler is not None and (not kwargs or knows(handler, kwargs)):
            result = handler(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if args and isinstance(args[0], cls):
            if _in_place(getattr(func, "__name__", "")):
                return args[0].change(func, args[1:], kwargs)
            if kwargs.get("inplace"):
                kwargs["inplace"] = False
                return args[0].become(args[0].value.given(func(*_plain(args), **_plain(kwargs))))
        return func(*_plain(args), **_plain(kwargs))

    def change(self, func: Any, args: Any, kwargs: Any) -> "Activation":
        """Run a function that writes to its first argument: this is another value then, and the old one what it was."""
        floats = self.float().clone()
        func(floats, *_plain(args), **_plain(kwargs))
        return self.become(self.value.given(floats))

    def float(self) -> Tensor:
        """The tensor it stands for, in its dtype."""
        return self.value.laid()

    def layers(self) -> set[Any]:
        """See `Value.layers`."""
        return self.value.layers()

    @property
    def shape(self) -> torch.Size:
        """As a tensor's."""
        return self.value.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the floats."""
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        """As a tensor's."""
        return self.value.device

    @property
    def ndim(self) -> int:
        """Dimensions."""
        return len(self.value.shape)

    def dim(self) -> int:
        """Dimensions."""
        return len(self.value.shape)

    def size(self, dim: int | None = None) -> Any:
        """All sizes, or one."""
        return self.value.shape if dim is None else self.value.shape[dim]

    def numel(self) -> int:
        """Elements."""
        return self.value.shape.numel()

    def become(self, value: Value, changed: "Activation | None" = None) -> "Activation":
        """An operation in place: from now on this value; what was computed of the old one keeps that.

        So are what it is a part of and its own parts, but `changed`, the one of them that this comes of. One of another shape
        goes on by itself.
        """
        same, self.value = value.shape == self.value.shape, value
        if same:
            self._tell_parts(changed)
            view = self.part_of
            if view is not None and view.shares():
                view.whole.become(view.whole.value.overwritten(view, value), self)
        else:
            self._part_with_all()
        return self

    def _part_with_all(self) -> None:
        self.part_of = None
        for part in (known() for known in self.parts):
            if part is not None:
                part.part_of = None
        self.parts = ()

    def _tell_parts(self, changed: "Activation | None" = None) -> None:
        for part in (known() for known in self.parts):
            view = None if part is None or part is changed else part.part_of
            if part is not None and view is not None and view.shares():
                part.value = view.value()
                part._tell_parts()

    def __len__(self) -> int:
        return self.value.shape[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in METHODS and not _in_place(name):
            return getattr(self.float(), name)
        func = getattr(Tensor, name)
        return lambda *args, **kwargs: self.__torch_function__(func, (), (self, *args), kwargs)

    def __getitem__(self, index: Any) -> Any:
        return METHODS["__getitem__"](self, index)

    def __add__(self, other: Any) -> Any:
        return METHODS["add"](self, other)

    def __radd__(self, other: Any) -> Any:
        return METHODS["add"](self, other)

    def __iadd__(self, other: Any) -> Any:
        return METHODS["add_"](self, other)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.change(Tensor.__setitem__, (index, value), {})

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.float().detach().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self.float().__dlpack_device__()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.float().detach().cpu().numpy().astype(dtype or "float32", copy=bool(copy))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copied and written as the tensor, without the layers that it came of."""
        return self.float().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        state = (
            "codes"
            if self.value.rounded is not None
            else "pending"
            if self.value.floats is None
            else "floats"
        )
        return f"Activation({tuple(self.shape)}, {self.dtype}, {state})"


def _in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _operator(name: str) -> Any:
    def operator(self: Activation, *args: Any) -> Any:
        return getattr(self.float(), name)(*_plain(args))

    operator.__name__ = name
    return operator


def _operator_in_place(name: str) -> Any:
    def operator(self: Activation, other: Any) -> Any:
        floats = self.float()
        result = getattr(floats, f"__{name}__")(_plain(other))
        if result is NotImplemented:
            return result
        if result.shape != floats.shape:  # torch says why not
            return self.change(getattr(Tensor, f"__i{name}__"), (other,), {})
        return self.become(self.value.given(result.to(floats.dtype)))

    operator.__name__ = f"__i{name}__"
    return operator


_OPERATORS = """
sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod pow rpow matmul rmatmul neg abs eq ne lt le gt ge bool int float
index complex format iter contains invert and or xor
"""
for _name in _OPERATORS.split():
    setattr(Activation, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ["sub", "mul", "truediv", "floordiv", "mod", "pow"]:
    setattr(Activation, f"__i{_name}__", _operator_in_place(_name))
Activation.__hash__ = object.__hash__  # type: ignore[method-assign]


def _plain(tree: Any) -> Any:
    """Activations as the tensors they stand for, in arguments as torch's functions take them."""
    if isinstance(tree, Activation):
        return tree.float()
    if isinstance(tree, tuple | list):
        return type(tree)(_plain(part) for part in tree)
    if isinstance(tree, dict):
        return {key: _plain(part) for key, part in tree.items()}
    return tree
