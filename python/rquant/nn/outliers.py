"""Outliers of a layer's input, the columns that LLM.int8() multiplies in float while the rest is int8.

Dettmers et al. 2022, <https://arxiv.org/abs/2208.07339>: a few features of a large model are so much larger than the
others that they leave these no steps of the int8 range. A threshold (6.0 there) finds their columns anew in each call.
"""

import math
from collections.abc import Sequence

from ..qtypes import QType, qint8

Outliers = float | Sequence[int] | None
"""A threshold, or the columns themselves."""


def resolve_threshold(outliers: Outliers, activations: QType | None) -> float | None:
    """A threshold that can be used with `activations`. Raises ValueError for what is none."""
    if outliers is None:
        return None
    _check_activations(outliers, activations)
    number = isinstance(outliers, int | float) and not isinstance(outliers, bool)
    if not number or not 0 < outliers < math.inf:  # type: ignore[operator]
        raise ValueError(f"outliers: expected a finite threshold above 0, got {outliers!r}")
    return float(outliers)  # type: ignore[arg-type]


def resolve_outliers(
    outliers: Outliers, activations: QType | None, in_features: int
) -> float | tuple[int, ...] | None:
    """A threshold as it is, columns in ascending order. Raises ValueError for one that is none, or is given twice."""
    if not isinstance(outliers, Sequence) or isinstance(outliers, str):
        return resolve_threshold(outliers, activations)
    _check_activations(outliers, activations)
    seen: set[int] = set()
    for column in outliers:
        if not isinstance(column, int) or not 0 <= column < in_features or column in seen:
            raise ValueError(f"outliers: expected different columns in [0, {in_features}), got {column!r}")
        seen.add(column)
    return tuple(sorted(seen))


def _check_activations(outliers: Outliers, activations: QType | None) -> None:
    if activations is not qint8:
        raise ValueError(
            f"outliers: expected None without activations=rquant.qint8 and integer weights (other products read all of "
            f"their input in float), got {outliers!r}"
        )
