"""Histograms of weights, and what they say in numbers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of values in equal bins over [edges[0], edges[-1]]; mean, std, least and most are those of all values.

    `counts` int64 `[bins]`, `edges` float64 `[bins + 1]`. The last bin has both its ends. `outside` values lie beyond
    the edges; `zeros` are exactly 0.
    """

    counts: Tensor
    edges: Tensor
    count: int
    outside: int
    zeros: int
    mean: float
    std: float
    least: float
    most: float

    @property
    def peak(self) -> float:
        """The share of all values in the fullest bin."""
        return self.counts.max().item() / self.count

    @property
    def empty(self) -> float:
        """The share of bins without a value, of those between the first and the last that have one: rounding leaves gaps."""
        used = self.counts.nonzero().reshape(-1)
        if not len(used):
            return 0.0
        span = int(used[-1] - used[0]) + 1
        return 1 - len(used) / span

    def overlap(self, other: "Histogram") -> float:
        """What both have in common: the sum over bins of the smaller share, 1 for equal shapes (of what is in range).

        Raises ValueError for other bins.
        """
        if not torch.equal(self.edges, other.edges):
            raise ValueError("other: expected a histogram over the same bins, got different edges")
        mine, theirs = (h.counts.double() / max(int(h.counts.sum()), 1) for h in (self, other))
        return torch.minimum(mine, theirs).sum().item()

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        numbers = ("count", "outside", "zeros", "mean", "std", "least", "most", "peak", "empty")
        return {
            **{name: getattr(self, name) for name in numbers},
            "edges": [self.edges[0].item(), self.edges[-1].item()],
            "counts": self.counts.tolist(),
        }

    def __str__(self) -> str:
        return (
            f"{self.count:,} values in [{self.least:.4g}, {self.most:.4g}], mean {self.mean:.3g}, std {self.std:.4g}; "
            f"{self.zeros / self.count:.2%} are 0, {self.peak:.2%} in the fullest of {len(self.counts)} bins, "
            f"{self.empty:.1%} of the bins empty"
        )


def histogram(
    x: Tensor | Iterable[Tensor], bins: int = 150, range: tuple[float, float] = (-2.0, 2.0)
) -> Histogram:
    """Count the values of a tensor, or of all tensors of an iterable (`model.parameters()`), one after the other.

    `range` is cut into `bins`; what lies beyond is counted apart. Raises ValueError for no values, NaN or infinity, and for
    a range or a number of bins that is none.
    """
    lo, hi = (float(end) for end in range)
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"range: expected (lo, hi) with lo < hi, got {range!r}")
    if not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins: expected an int >= 1, got {bins!r}")
    counts = torch.zeros(bins, dtype=torch.int64)
    count = zeros = 0
    total = squares = 0.0
    least, most = math.inf, -math.inf
    for tensor in [x] if isinstance(x, Tensor) else x:
        for values in tensor.detach().reshape(-1).split(1 << 22):  # float64 copies of a part at a time
            values = values.cpu().double()
            if not values.isfinite().all():
                raise ValueError(
                    f"x: expected finite numbers, got NaN or infinity in a tensor {tuple(tensor.shape)}"
                )
            if not values.numel():
                continue
            inside = values[(values >= lo) & (values <= hi)]
            index = ((inside - lo) * (bins / (hi - lo))).long().clamp_(0, bins - 1)
            counts += torch.bincount(index, minlength=bins)
            count += values.numel()
            zeros += int((values == 0).sum())
            total += values.sum().item()
            squares += values.square().sum().item()
            least, most = min(least, values.min().item()), max(most, values.max().item())
    if not count:
        raise ValueError("x: expected at least one value, got none")
    mean = total / count
    std = math.sqrt(max(squares / count - mean * mean, 0.0))
    edges = torch.linspace(lo, hi, bins + 1, dtype=torch.float64)
    return Histogram(counts, edges, count, count - int(counts.sum()), zeros, mean, std, least, most)
