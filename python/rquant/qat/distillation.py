"""A loss that teaches a quantized model what its float original says (Hinton et al. 2015, <https://arxiv.org/abs/1503.02531>)."""

import math

from torch import Tensor
from torch.nn import functional


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
    alpha: float = 0.9,
) -> Tensor:
    """`alpha · T² · KL(softmax(teacher / T) ‖ softmax(logits / T)) + (1 - alpha) · cross_entropy(logits, target)`, a scalar.

    `logits` and `teacher_logits`: floats `[..., classes]`, the mean over all but the last dimension; of the teacher no
    gradient is asked. `target`: class numbers, int64 `[...]`, or None for the first term alone, times 1. T² keeps the
    gradient's size whatever the temperature. Raises ValueError for shapes that differ, a temperature not above 0, an alpha
    outside [0, 1].
    """
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"teacher_logits: expected the logits' shape {tuple(logits.shape)}, got {tuple(teacher_logits.shape)}"
        )
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a finite number above 0, got {temperature!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a number from 0 to 1, got {alpha!r}")
    classes = logits.shape[-1]
    student = functional.log_softmax(logits.float() / temperature, -1).reshape(-1, classes)
    teacher = functional.log_softmax(teacher_logits.detach().float() / temperature, -1).reshape(-1, classes)
    soft = functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
    if target is None:
        return soft
    if target.shape != logits.shape[:-1]:
        raise ValueError(
            f"target: expected class numbers of shape {tuple(logits.shape[:-1])}, got {tuple(target.shape)}"
        )
    hard = functional.cross_entropy(logits.float().reshape(-1, classes), target.reshape(-1))
    return alpha * soft + (1 - alpha) * hard
