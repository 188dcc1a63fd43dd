"""What a calibration saw of every layer: kept, merged over processes, saved, and turned into scales by any method."""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import distributed, nn

from .. import _rquant
from ..io.safetensors_file import Entry, Reader, write
from ..io.safetensors_header import PathLike
from ..nn.static import StaticInput
from ..observers import MovingAverage
from ..observers.methods import Method
from ..observers.observer import Range
from .choice import MethodChoice, Overrides, method_name
from .tensor import TensorStatistics

FORMAT = 1
_KEY = "rquant_statistics"
PlaceName = Literal["input", "output"]


class Spot(NamedTuple):
    """A layer's "input" or "output"; `layer` is its name in the model."""

    layer: str
    name: PlaceName

    def __str__(self) -> str:
        return f"{self.layer}.{self.name}" if self.layer else self.name


class Passage(NamedTuple):
    """How a layer's output went on: `flow` and `keep` of `rquant.nn.static.StaticInput`."""

    flow: bool
    keep: int | None


class Statistics:
    """`tensors`: what is known at each `Spot`; `passages`: of each layer that ran, where its output went.

    `choice`, `symmetric` and `percentile` are what `apply` does unless it is told otherwise.
    """

    def __init__(
        self,
        method: Method = "moving_average",
        momentum: float = 0.9,
        percentile: float = 99.999,
        symmetric: bool = False,
        overrides: Overrides = None,
    ) -> None:
        self.choice = MethodChoice.of(method, overrides)
        MovingAverage(momentum)  # which says what is wrong with it
        if (
            isinstance(percentile, bool)
            or not isinstance(percentile, int | float)
            or not 0 < percentile <= 100
        ):
            raise ValueError(f"percentile: expected a number above 0 and at most 100, got {percentile!r}")
        self.momentum, self.percentile, self.symmetric = momentum, percentile, symmetric
        self.tensors: dict[Spot, TensorStatistics] = {}
        self.passages: dict[str, Passage] = {}

    def at(self, spot: Spot) -> TensorStatistics:
        """Those of a place, begun if there are none."""
        if spot not in self.tensors:
            self.tensors[spot] = TensorStatistics(self.choice.of_layer(spot.layer), self.momentum)
        return self.tensors[spot]

    def end_batch(self) -> None:
        """What is seen from now on is another batch."""
        for tensor in self.tensors.values():
            tensor.end_batch()

    def ranges(
        self,
        method: Method | None = None,
        *,
        overrides: Overrides = None,
        percentile: float | None = None,
        symmetric: bool | None = None,
    ) -> dict[Spot, Range]:
        """Of each place by its own method, or by `method` and `overrides`. No data are run.

        Raises ValueError for a method whose data were not kept: "cross_entropy" and factories, unless calibrated with.
        """
        percentile = self.percentile if percentile is None else percentile
        symmetric = self.symmetric if symmetric is None else symmetric
        choice = None
        if method is not None or overrides is not None:
            choice = MethodChoice.of(self.choice.method if method is None else method, overrides)
            choice.check(spot.layer for spot in self.tensors)
        found = {}
        for spot, tensor in self.tensors.items():
            chosen = None if choice is None else choice.of_layer(spot.layer)
            try:
                found[spot] = tensor.range(chosen, percentile, symmetric)
            except ValueError as error:
                raise ValueError(f"{spot}: {error}") from None
        return found

    def apply(
        self,
        model: nn.Module,
        method: Method | None = None,
        *,
        overrides: Overrides = None,
        percentile: float | None = None,
        symmetric: bool | None = None,
    ) -> None:
        """Give the model's layers scales by these statistics; arguments as of `ranges`.

        Raises ValueError for a layer that the model lacks; the model is then as it was.
        """
        modules = dict(model.named_modules())
        for name in self.passages:
            if not isinstance(modules.get(name), StaticInput):
                raise ValueError(
                    f"model: expected a quantized layer {name!r}, got {_what(modules.get(name))}"
                )
        ranges = self.ranges(method, overrides=overrides, percentile=percentile, symmetric=symmetric)
        self.assign(modules, ranges, self.symmetric if symmetric is None else symmetric)

    def assign(self, layers: Mapping[str, Any], ranges: Mapping[Spot, Range], symmetric: bool) -> None:
        """Set scales and passages of the layers with these names; others are left as they are."""
        for spot, range in ranges.items():
            if spot.layer in layers:
                layers[spot.layer].calibrate(spot.name, *range, symmetric)
        for name, passage in self.passages.items():
            if name in layers:
                layers[name].flow, layers[name].keep = passage

    def merge(self, other: "Statistics") -> None:
        """As if the batches of `other` had come after. Raises ValueError for another momentum or another kind of observer."""
        if other.momentum != self.momentum:
            raise ValueError(f"other: expected momentum {self.momentum}, got {other.momentum}")
        for spot, tensor in other.tensors.items():
            self.at(spot).merge(tensor)
        for name, (flow, keep) in other.passages.items():
            mine = self.passages.get(name, Passage(flow, keep))
            self.passages[name] = Passage(mine.flow and flow, mine.keep if mine.keep is not None else keep)

    def all_reduce(self, group: Any = None) -> None:
        """Know what every process of a `torch.distributed` group has seen; all know the same afterwards, in order of ranks.

        Raises RuntimeError where no process group is there.
        """
        size = distributed.get_world_size(group)
        states: list[Any] = [None] * size
        distributed.all_gather_object(states, (self._table(), self._tensors()), group)
        self.tensors, self.passages = {}, {}
        for table, tensors in states:
            other = Statistics(self.choice.method, self.momentum, overrides=self.choice.overrides)
            other._restore(table, tensors)
            self.merge(other)

    # files

    def _table(self) -> dict[str, Any]:
        """All but tensors, in JSON types."""
        spots = [[spot.layer, spot.name, method_name(t.method)] for spot, t in self.tensors.items()]
        passages = {name: list(passage) for name, passage in self.passages.items()}
        return {
            "format": FORMAT,
            "rquant": _rquant.__version__,
            "method": method_name(self.choice.method),
            "momentum": self.momentum,
            "percentile": self.percentile,
            "symmetric": self.symmetric,
            "tensors": spots,
            "passages": passages,
        }

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{spot}.{key}": value
            for spot, tensor in self.tensors.items()
            for key, value in tensor.state_dict().items()
        }

    def save(self, path: PathLike) -> None:
        """Write a safetensors file, whole or not at all, with the rest as JSON in its metadata.

        A user's own observers are not in it: those places get "moving_average" when it is loaded, with a warning now.
        """
        table, tensors = self._table(), self._tensors()
        own = [row for row in table["tensors"] if row[2] == "custom"]
        for row in own:
            spot, row[2] = Spot(row[0], row[1]), "moving_average"
            tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{spot}.other.")}
        if table["method"] == "custom":
            table["method"] = "moving_average"
        if own:
            message = f"save: observers from a factory are left out, of {len(own)} tensors: theirs is moving_average now"
            warnings.warn(message, stacklevel=2)
        entries = [Entry.of({key: value}, lambda value=value: [value]) for key, value in tensors.items()]  # type: ignore[misc]
        write(Path(path), entries, {_KEY: json.dumps(table)})

    @classmethod
    def load(cls, path: PathLike) -> "Statistics":
        """What `save` wrote. Raises ValueError, naming the file, for one that is damaged or none of these."""
        reader = Reader(Path(path))
        try:
            table = json.loads(reader.metadata.get(_KEY, "null"))
            if not isinstance(table, dict) or table.get("format") != FORMAT:
                raise ValueError(f"expected statistics of format {FORMAT}, as Statistics.save writes them")
            tensors = {}
            for name in reader.table:
                reader.verify(name)
                tensors[name] = reader.view(name).clone()
            made = cls(table["method"], table["momentum"], table["percentile"], table["symmetric"])
            made._restore(table, tensors)
            return made
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: {error}") from None
        finally:
            reader.close()

    def _restore(self, table: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for layer, name, method in table["tensors"]:
            spot = Spot(layer, name)
            wanted = self.choice.of_layer(layer) if method == "custom" else method
            self.tensors[spot] = TensorStatistics(wanted, table["momentum"])
            own = {key[len(f"{spot}.") :]: t for key, t in tensors.items() if key.startswith(f"{spot}.")}
            self.tensors[spot].load_state_dict(own)
        self.passages = {name: Passage(*passage) for name, passage in table["passages"].items()}

    def __iter__(self) -> Iterator[Spot]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def _what(module: nn.Module | None) -> str:
    return "none" if module is None else type(module).__name__
