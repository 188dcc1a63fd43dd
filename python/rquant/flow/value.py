"""Tensors that are not computed yet: what they will be computed of, and when.

A `Value` is asked either for codes at a `Place` (a quantized layer's input) or for floats, and is computed then, once. A
layer's product takes ReLU, clamps and one addition along, so that they cost nothing and nothing is rounded between.
Values computed by `Integers` are codes; by `Floats`, in training and while recording, the same rounded floats.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import recording
from .birth import Birth
from .place import Place, StaticLayer

INF = math.inf


class Value:
    """What its `node` gives, then plus `addend`, then clamped to [lo, hi]; kept once computed.

    Once `rounded`, that is its value for every later reader: a skip connection sees the codes that the first layer read.
    """

    # what most values never change is the class's: one is made for each layer and call
    addend: "Value | None" = None
    lo, hi = -INF, INF
    stage = 0
    """How many operations the product took along."""
    taken = False
    rounded: Any = None
    at: Place | None = None
    """Where it was rounded."""
    floats: Tensor | None = None
    birth: Birth | None = None
    """Of what has gradients: `codes`, `tensor` and `laid` compute there."""

    def __init__(self, arithmetic: Any, node: Any, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.arithmetic, self.node = arithmetic, node
        self.channels_last: bool = node.channels_last
        self.shape: torch.Size = shape if type(shape) is torch.Size else torch.Size(shape)
        self.dtype = dtype
        if arithmetic.has_gradients:
            self.birth = Birth.now()

    @property
    def layer(self) -> StaticLayer | None:
        """The layer whose product this is, with what it took along."""
        return self.node.layer if isinstance(self.node, Product) else None

    @property
    def place(self) -> Place | None:
        """Where it is rounded when something other than a layer needs codes: the output of the layer it came of."""
        layer = self.node.origin()
        return None if layer is None else Place(layer, "output")

    @property
    def device(self) -> torch.device:
        """Where it is or will be computed."""
        if self.floats is not None:
            return self.floats.device
        if self.rounded is None and not isinstance(self.node, Product):
            return self.node.parents[0].device  # type: ignore[no-any-return]
        known = self.node.x if self.rounded is None else self.rounded
        return (known if isinstance(known, Tensor) else known.codes).device  # type: ignore[no-any-return]

    def layers(self) -> set[StaticLayer]:
        """The layers whose outputs it is computed of without another layer between."""
        found = self.node.layers()
        return found if self.addend is None else found | self.addend.layers()

    def given(self, floats: Tensor) -> "Value":
        """Another value of this one's kind: these floats."""
        value = Value(self.arithmetic, Settled(None), floats.shape, floats.dtype)
        value.floats, value.channels_last = floats, self.channels_last
        return value

    def overwritten(self, view: Callable[[Tensor], Tensor], part: "Value") -> "Value":
        """This one after `view` of it became `part`."""
        return Value(self.arithmetic, Overwritten(self, part, view), self.shape, self.dtype)

    # reading

    def codes(self, place: Place) -> Any:
        """Rounded for `place`."""
        if self.rounded is not None:
            return self.rounded if self.at == place else self.arithmetic.again(self.rounded, place)
        if self.birth is not None and self.birth.elsewhere():
            with self.birth.again():
                return self.codes(place)
        if self.taken:
            self._read()
        self.rounded = None if self.floats is not None else self.node.round(self, place)
        if self.rounded is None:
            self.rounded = self.arithmetic.enter(self._computed(), place)
        self.at = place
        self._settle()
        return self.rounded

    def own(self) -> Any:
        """Rounded as it is, or else at its own place; None where that is not calibrated."""
        if self.rounded is None:
            place = self.place
            if place is None or not self.arithmetic.knows(place):
                return None
            self.codes(place)
        return self.rounded

    def tensor(self) -> Tensor:
        """As floats: exact if it was not rounded before."""
        if self.birth is not None and self.birth.elsewhere():
            with self.birth.again():
                return self.tensor()
        if self.taken and self.floats is None and self.rounded is None:
            self._read()
        return self._computed()

    def laid(self) -> Tensor:
        """`tensor()`, its elements in memory as torch would have them: channels last only if the model's input had them so."""
        if self.birth is not None and self.birth.elsewhere():
            with self.birth.again():
                return self.laid()
        floats = self.tensor()
        if not self.channels_last and not floats.is_contiguous():
            floats = self.floats = floats.contiguous()
        return floats

    def _computed(self) -> Tensor:
        if self.floats is None:
            if self.rounded is not None:
                self.floats = self.arithmetic.leave(self.rounded, self.dtype)
            else:
                self.floats = self.node.floats(self)
                self._settle()
        return self.floats

    def _settle(self) -> None:
        """Let go of what it was computed of, so that the memory serves the next layers; who records wants to know."""
        if recording.current() is None:
            self.node, self.addend = Settled(self.node.origin()), None

    def _read(self) -> None:
        """Read again after an operation was taken along: who records is told."""
        recorder = recording.current()
        if recorder is not None and self.layer is not None:
            recorder.shared(self.layer, self.stage, self._computed())

    # what follows

    def _take(self) -> "Value | None":
        """A copy for the product to take an operation along; None if it is too late for that."""
        node = self.node
        if type(node) is Product and node.layer.keep == self.stage and recording.current() is None:
            self.own()
        if self.rounded is not None or self.floats is not None or not node.fuses:
            return None
        if self.taken:
            self._read()
        self.taken = True
        taken = Value.__new__(Value)
        taken.__dict__.update(self.__dict__)
        taken.taken, taken.stage = False, self.stage + 1
        taken.birth = None if self.birth is None else Birth.now()
        return taken

    def clamp(self, lo: float, hi: float) -> "Value":
        """`clamp(self, lo, hi)`."""
        value = self._take() or Value(self.arithmetic, Clamped(self), self.shape, self.dtype)
        if value.lo == -INF and value.hi == INF:
            value.lo, value.hi = lo, hi
        else:
            value.lo, value.hi = min(max(value.lo, lo), hi), min(max(value.hi, lo), hi)
        return value

    def add(self, other: "Value") -> "Value":
        """`self + other`, of the same shape and arithmetic."""
        for first, second in ((self, other), (other, self)):
            if not (
                isinstance(first.node, Product)
                and first.addend is None
                and (first.lo, first.hi) == (-INF, INF)
            ):
                continue
            if first.node.takes_addend and (taken := first._take()) is not None:
                taken.addend = second
                return taken
        return Value(self.arithmetic, Added(self, other), self.shape, self.dtype)

    def clamped(self, x: Tensor) -> Tensor:
        """Floats, clamped as this is."""
        return x if (self.lo, self.hi) == (-INF, INF) else x.clamp(self.lo, self.hi)


class Product:
    """A layer on an input that is rounded already."""

    fuses = takes_addend = True

    def __init__(self, layer: StaticLayer, x: Any, channels_last: bool = False) -> None:
        self.layer, self.x, self.channels_last = layer, x, channels_last

    def origin(self) -> StaticLayer:
        return self.layer

    def layers(self) -> set[StaticLayer]:
        return {self.layer}

    def round(self, value: Value, place: Place) -> Any:
        addend = None if value.addend is None else value.addend.own()
        if value.addend is not None and addend is None:
            return None
        return value.arithmetic.product(self.layer, self.x, addend, value.lo, value.hi, place)

    def floats(self, value: Value) -> Tensor:
        arithmetic, addend = value.arithmetic, value.addend
        known = None if addend is None else addend.rounded
        if addend is None or known is not None:
            return arithmetic.float_product(self.layer, self.x, known, value.lo, value.hi, value.dtype)  # type: ignore[no-any-return]
        product = arithmetic.float_product(self.layer, self.x, None, -INF, INF, value.dtype)
        return value.clamped(product + addend.tensor())


class Settled:
    """What was computed once; `layer` is where it came from."""

    fuses = channels_last = False

    def __init__(self, layer: StaticLayer | None) -> None:
        self.layer = layer

    def origin(self) -> StaticLayer | None:
        return self.layer

    def layers(self) -> set[StaticLayer]:
        return set() if self.layer is None else {self.layer}

    def round(self, value: Value, place: Place) -> Any:
        return None


class _Of:
    """A node of other values."""

    fuses = False

    def __init__(self, *parents: Value) -> None:
        self.parents, self.channels_last = parents, parents[0].channels_last

    def origin(self) -> StaticLayer | None:
        place = self.parents[0].place
        return None if place is None else place.layer

    def layers(self) -> set[StaticLayer]:
        return set().union(*(parent.layers() for parent in self.parents))


class Clamped(_Of):
    """A value that was computed before it could take the clamp along."""

    fuses = True

    def round(self, value: Value, place: Place) -> Any:
        x = self.parents[0].own()
        return None if x is None else value.arithmetic.again(x, place, value.lo, value.hi)

    def floats(self, value: Value) -> Tensor:
        return value.clamped(self.parents[0].tensor())


class Added(_Of):
    """A sum that no product could take along."""

    fuses = True

    def round(self, value: Value, place: Place) -> Any:
        a, b = (parent.own() for parent in self.parents)
        if a is None or b is None:
            return None
        return value.arithmetic.add(a, b, value.lo, value.hi, place)

    def floats(self, value: Value) -> Tensor:
        a, b = self.parents
        return value.clamped(a.tensor() + b.tensor())


class Joined(_Of):
    """Values side by side along a dimension; each is rounded for whoever reads the whole."""

    def __init__(self, parents: Sequence[Value], dim: int) -> None:
        super().__init__(*parents)
        self.dim = dim

    def round(self, value: Value, place: Place) -> Any:
        with value.arithmetic.as_one(place) as enters:
            joined = value.arithmetic.join([parent.codes(place) for parent in self.parents], self.dim, place)
        return value.arithmetic.enter(joined, place) if enters else joined

    def floats(self, value: Value) -> Tensor:
        return torch.cat([parent.tensor() for parent in self.parents], self.dim)


class Moved(_Of):
    """Elements in another order or some of them, which commutes with rounding: `func` on codes or floats.

    `stay`: whether samples (places of the first dimension) stay where they are.
    """

    def __init__(
        self,
        parent: Value,
        func: Callable[..., Tensor],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        stay: bool,
    ) -> None:
        super().__init__(parent)
        self.func, self.args, self.kwargs, self.stay = func, args, kwargs, stay

    def round(self, value: Value, place: Place) -> Any:
        parent = self.parents[0].codes(place)
        return value.arithmetic.move(parent, self.func, self.args, self.kwargs, self.stay)

    def floats(self, value: Value) -> Tensor:
        return self.func(self.parents[0].tensor(), *self.args, **self.kwargs)


class Overwritten(_Of):
    """Floats of which a part was changed in place."""

    def __init__(self, before: Value, part: Value, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__(before, part)
        self.view = view

    def origin(self) -> None:
        return None

    def layers(self) -> set[StaticLayer]:
        return set()

    def round(self, value: Value, place: Place) -> Any:
        return None

    def floats(self, value: Value) -> Tensor:
        before, part = self.parents
        whole = before.tensor().clone(memory_format=torch.contiguous_format)
        self.view(whole).copy_(part.tensor())
        return whole


class Padded(_Of):
    """Zeros around it."""

    def __init__(self, parent: Value, pad: Sequence[int]) -> None:
        super().__init__(parent)
        self.pad = list(pad)

    def round(self, value: Value, place: Place) -> Any:
        return value.arithmetic.pad(self.parents[0].codes(place), self.pad)

    def floats(self, value: Value) -> Tensor:
        return torch.nn.functional.pad(self.parents[0].tensor(), self.pad)


class MaxPooled(_Of):
    """Maxima, which commute with rounding."""

    def __init__(self, parent: Value, args: Sequence[Any]) -> None:
        super().__init__(parent)
        self.args = args

    def round(self, value: Value, place: Place) -> Any:
        return value.arithmetic.max_pool(self.parents[0].codes(place), *self.args)

    def floats(self, value: Value) -> Tensor:
        return torch.nn.functional.max_pool2d(self.parents[0].tensor(), *self.args)


class Averaged(_Of):
    """Averages of codes that are rounded at their own place. One argument: adaptive."""

    def __init__(self, parent: Value, args: Sequence[Any]) -> None:
        super().__init__(parent)
        self.args = args

    def round(self, value: Value, place: Place) -> Any:
        x = self.parents[0].own()
        return None if x is None else value.arithmetic.average(x, self.args, place)

    def floats(self, value: Value) -> Tensor:
        pool = torch.nn.functional
        x = self.parents[0].tensor()
        return (
            pool.adaptive_avg_pool2d(x, *self.args) if len(self.args) == 1 else pool.avg_pool2d(x, *self.args)
        )
