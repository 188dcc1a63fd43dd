"""Training with the rounding in place: scales that learn or follow observers, BatchNorm inside layers, distillation.

The loop is the user's own. `rquant.quantize`, `fold_bn` if there are BatchNorms, `rquant.Calibration`, `prepare`; then train
in `model.train()`, look at it in `model.eval()`, which computes in integers as deployed, and `rquant.freeze`.
"""

from .batch_norm import InnerBatchNorm, fold_bn, freeze_bn_stats
from .distillation import distillation_loss
from .prepare import freeze_observers, prepare
from .ranges import LearnedRange, ObservedRange
from .scales import LearnedWeightScale

__all__ = [
    "InnerBatchNorm",
    "LearnedRange",
    "LearnedWeightScale",
    "ObservedRange",
    "distillation_loss",
    "fold_bn",
    "freeze_bn_stats",
    "freeze_observers",
    "prepare",
]
