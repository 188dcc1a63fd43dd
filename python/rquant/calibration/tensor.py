"""What is known of the values at one place of a model."""

from typing import Any

from torch import Tensor

from ..observers import Histogram, MinMax, MovingAverage, NotFinite, Observer, observer_of
from ..observers.methods import Method
from ..observers.observer import Range, State

FROM_COUNTS = ("minmax", "moving_average", "percentile", "mse", "entropy")
"""Methods whose ranges need nothing but what is always kept."""


class TensorStatistics:
    """The ends, their moving average and a histogram of all values at one place, in 32 KiB; with them ranges by most methods.

    `method` decides; "cross_entropy" keeps a sample of rows too, and a factory its own observer instead. What is seen until
    `end_batch` is one batch of a moving average, in however many parts it comes.
    """

    def __init__(self, method: Method = "moving_average", momentum: float = 0.9) -> None:
        self.method = method
        self.minmax, self.average, self.histogram = MinMax(), MovingAverage(momentum), Histogram()
        self.other: Observer | None = None
        if method not in FROM_COUNTS:
            self.other = observer_of(method)
        self._batch = MinMax()

    def update(self, x: Tensor, name: str) -> None:
        """A batch, or a part of one, at the place of this name. Raises ValueError with the name and the index of the first NaN or infinity."""
        try:
            extent = self.histogram.count(x)
            if extent is not None:
                self.minmax.include(*extent)
                self._batch.include(*extent)
                if self.other is not None and type(self.other) is not MovingAverage:
                    self.other.update(x)
        except NotFinite as bad:
            raise NotFinite(bad.index, name) from None
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def end_batch(self) -> None:
        """What comes next is another batch."""
        batch, self._batch = self._batch, MinMax()
        if batch.lo <= batch.hi:
            self.average.include(batch.lo, batch.hi)
            if type(self.other) is MovingAverage:
                self.other.include(batch.lo, batch.hi)

    def range(
        self, method: Method | None = None, percentile: float = 99.999, symmetric: bool = False
    ) -> Range:
        """By `method`, or the one it was made with. Raises ValueError for one that had to be chosen before."""
        self.end_batch()
        method = self.method if method is None else method
        if method == "percentile":
            return self.histogram.percentile(percentile, symmetric)
        if method in ("mse", "entropy"):
            return getattr(self.histogram, method)(symmetric=symmetric)  # type: ignore[no-any-return, arg-type]
        if method in ("minmax", "moving_average"):
            return (self.minmax if method == "minmax" else self.average).range(symmetric=symmetric)
        if self.other is None or method != self.method:
            raise ValueError(
                f"method: expected one of {', '.join(FROM_COUNTS)}, for which statistics are always kept, or the one that "
                f"was calibrated with, got {method!r}"
            )
        return self.other.range(symmetric=symmetric)

    def merge(self, other: "TensorStatistics") -> None:
        """As if the batches of `other` had come after."""
        self.end_batch()
        other.end_batch()
        self.minmax.merge(other.minmax)
        self.average.merge(other.average)
        self.histogram.merge(other.histogram)
        if self.other is not None and other.other is not None:
            self.other.merge(other.other)

    def observers(self) -> dict[str, Observer]:
        """By the name of what they find."""
        self.end_batch()
        kept: dict[str, Any] = {
            "minmax": self.minmax,
            "moving_average": self.average,
            "histogram": self.histogram,
        }
        if self.other is not None:
            kept["other"] = self.other
        return kept

    def state_dict(self) -> State:
        """Each observer's, under its name and a dot."""
        return {
            f"{name}.{key}": value
            for name, observer in self.observers().items()
            for key, value in observer.state_dict().items()
        }

    def load_state_dict(self, state: State) -> None:
        """Raises ValueError for what is not one of these."""
        for name, observer in self.observers().items():
            own = {
                key.removeprefix(f"{name}."): value
                for key, value in state.items()
                if key.startswith(f"{name}.")
            }
            observer.load_state_dict(own)
