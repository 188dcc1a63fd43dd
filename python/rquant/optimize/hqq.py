"""Half-quadratic quantization: fractional zero points that make the error sparse, without data.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models",
<https://mobiusml.github.io/hqq_blog/>.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .. import _native
from .._native import QMatrix
from ..scheme import HALF_QUADRATIC, Scheme, ZeroPointDtype


@dataclass(frozen=True)
class HQQ:
    """Minimizes `Σ |W - S(q - Z)|**lp_norm` of each group over Z, with S that of the `MSE` range or of the whole one.

    The error is split into a sparse part E (outliers) and a Gaussian one: in turns E is the proximal operator of the
    norm at the error, `sign(e) · max(|e| - |e|**(lp_norm - 1) / beta, 0)`, and Z the mean of `q - (W - E) / S`; then beta
    grows by `kappa`. A group stops after `iterations` turns or when Z stays, and takes the best Z it has had as float16
    stores it; it begins with the better one of its range's, whole or fractional, so that none ends worse. The paper's S
    is that of `range="minmax"`; that of "mse" serves 2 bits better.

    Zero points are float16: 0.0 comes back only nearly. Integer ones could not move, as a turn changes Z by less than a
    step; `MSE` is the choice there.
    """

    lp_norm: float = HALF_QUADRATIC[0]
    beta: float = HALF_QUADRATIC[1]
    kappa: float = HALF_QUADRATIC[2]
    iterations: int = HALF_QUADRATIC[3]
    range: Literal["minmax", "mse"] = "mse"

    zero_point_dtype: ZeroPointDtype = "float16"

    def __call__(self, weight: Tensor, scheme: Scheme) -> QMatrix:
        """`weight` `[n, k]` in the scheme's canonical form. Raises NotFinite for NaN or infinity."""
        kind, group_size = scheme.kind, scheme.group_size
        scale, _ = _native.parameters(weight, kind, group_size, False, self.range)
        method = self.lp_norm, self.beta, self.kappa, self.iterations
        zero = _native.half_quadratic(weight, scale, kind, group_size, *method)
        return _native.encode(weight, scale, zero, kind, group_size)
