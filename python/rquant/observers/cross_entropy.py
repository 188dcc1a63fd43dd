"""The range that changes a softmax least."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..qtypes import QType, qint8
from .extent import MinMax
from .observer import Range, State
from .values import largest_code, widened

_PARTS = tuple(2 ** (-i / 8) for i in range(41))
"""Of the whole range, from 1 to 1/32; `_FINE` are those between two of them."""
_FINE = tuple(2 ** (i / 64) for i in range(-7, 8) if i)
_MOST = 1 << 17


class CrossEntropy:
    """For logits, and what else becomes a softmax over its last dimension: argmin CE(softmax(V), softmax(V̂)) over ranges.

    A value far below the largest may be clipped at no cost, and the order of the largest ones counts most, which the squared
    error does not know. Parts of the range of all values are tried on a uniform sample of at most `rows` rows and 2**17
    values (4 rows if they are longer), the only values that any observer keeps; the whole range is never better on it.
    """

    def __init__(self, rows: int = 64, seed: int = 0) -> None:
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise ValueError(f"rows: expected an int of at least 1, got {rows!r}")
        self.rows = rows
        self._random = torch.Generator().manual_seed(seed)
        self._extent = MinMax()
        self._sample, self._keys = torch.empty(0, 0), torch.empty(0, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Rows of the last dimension longer than 1, as long as the first ones were. Raises ValueError for others."""
        columns = next((size for size in reversed(x.shape) if size != 1), 1)
        if self._sample.numel() and columns != self._sample.shape[1]:
            raise ValueError(
                f"x: expected rows of {self._sample.shape[1]} values, got shape {tuple(x.shape)}"
            )
        self._extent.update(x)
        rows = x.detach().reshape(-1, columns)
        if rows.numel():
            # the rows with the least of random keys are a uniform sample, whatever they were merged from
            keys = torch.rand(len(rows), generator=self._random, dtype=torch.float64)
            first = keys.argsort()[: self._most(columns)]
            self._take(rows[first.to(rows.device)].float().cpu(), keys[first])

    def _most(self, columns: int) -> int:
        return min(self.rows, max(_MOST // columns, 4))

    def _take(self, rows: Tensor, keys: Tensor) -> None:
        if self._sample.numel():
            rows, keys = torch.cat([self._sample, rows]), torch.cat([self._keys, keys])
        first = keys.argsort()[: self._most(rows.shape[1])]
        self._sample, self._keys = rows[first].clone(), keys[first]

    def range(self, qtype: QType | str = qint8, symmetric: bool = False) -> Range:
        """The best part of the range of all values: both ends, then unless symmetric each by itself."""
        qmax = largest_code(qtype)
        whole = self._extent.range(qtype, symmetric)
        wanted = self._sample.double().softmax(-1)
        if whole[0] == whole[1]:
            return whole

        def cost(range: Range) -> float:
            logits = _rounded(self._sample, range, qmax, symmetric).double()
            return -(wanted * logits.log_softmax(-1)).sum(-1).mean().item()

        best = whole, cost(whole)
        ways: list[Callable[[Range, float, float], Range]] = [lambda r, lo, hi: (lo, hi)]
        if not symmetric and whole[0] < 0 < whole[1]:
            ways += [lambda r, lo, hi: (lo, r[1]), lambda r, lo, hi: (r[0], hi)]
        for way in ways:
            for parts in (_PARTS, _FINE):
                start = best[0]
                lo, hi = whole if parts is _PARTS else start
                tried = [way(start, lo * part, hi * part) for part in parts]
                inside = [r for r in tried if whole[0] <= r[0] and r[1] <= whole[1]]
                best = min([best, *((r, cost(r)) for r in inside)], key=lambda found: found[1])
        return best[0]

    def merge(self, other: "CrossEntropy") -> None:
        """A sample of both. Raises ValueError for rows of another length."""
        if other._sample.numel():
            if self._sample.numel() and self._sample.shape[1] != other._sample.shape[1]:
                raise ValueError(
                    f"other: expected rows of {self._sample.shape[1]} values, got {other._sample.shape[1]}"
                )
            self._take(other._sample, other._keys)
        self._extent.merge(other._extent)

    def state_dict(self) -> State:
        """`sample` float32 `[rows, columns]`, `keys`, and the ends of all values."""
        return {"sample": self._sample, "keys": self._keys, **self._extent.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Raises ValueError for other names or shapes."""
        rest = {name: value for name, value in state.items() if name not in ("sample", "keys")}
        self._extent.load_state_dict(rest)
        sample, keys = state.get("sample"), state.get("keys")
        if sample is None or keys is None or sample.dim() != 2 or keys.shape != sample.shape[:1]:
            raise ValueError("state: expected a sample of rows and their keys, got others")
        self._sample, self._keys = sample, keys


def _rounded(x: Tensor, range: Range, qmax: int, symmetric: bool) -> Tensor:
    """x as codes of this range stand for it."""
    lo, hi = widened(range, symmetric)
    width = hi / qmax if symmetric else (hi - lo) / (2 * qmax)
    scale = torch.tensor(width, dtype=torch.float32).clamp(min=torch.finfo(torch.float32).tiny)
    zero = 0 if symmetric else max(-qmax, min(qmax, round(-qmax - lo / scale.item())))
    return (x / scale).round().clamp(-qmax - zero, qmax - zero) * scale
