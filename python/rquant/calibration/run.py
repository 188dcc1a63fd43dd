"""`rquant.calibrate`: the whole calibration in one call."""

from collections.abc import Iterable, Mapping
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..observers.methods import Method
from ..progress import bar
from .choice import Overrides
from .context import Calibration


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    method: Method = "moving_average",
    samples: int = 200,
    *,
    momentum: float = 0.9,
    percentile: float = 99.999,
    symmetric: bool = False,
    overrides: Overrides = None,
) -> Calibration:
    """Run the model, in evaluation mode, on batches until it has seen `samples`, and give its layers static scales.

    A batch is a tensor, a tuple or list of arguments, or a dict of them by name; what it counts is the first dimension of its
    first tensor. The last one is run whole. Some 200 samples are enough; labels do not belong into a batch. Arguments
    otherwise, and errors, as of `Calibration`, which is returned.

    Raises ValueError for no batches, for a batch without a tensor, and for one that the model does not take.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples: expected an int of at least 1, got {samples!r}")
    calibration = Calibration(
        method,
        momentum=momentum,
        percentile=percentile,
        symmetric=symmetric,
        overrides=overrides,
        model=model,
    )
    modes = {module: module.training for module in model.modules()}
    seen = 0
    model.eval()
    try:
        with calibration, bar(samples, "calibrating") as shown:
            for batch in batches:
                count = _count(batch)
                _call(model, batch)
                seen += count
                shown.update(min(count, samples - seen + count))
                if seen >= samples:
                    break
            if not seen:
                raise ValueError("batches: expected at least one sample, got none")
    finally:
        for module, mode in modes.items():
            module.training = mode
    return calibration


def _count(batch: Any) -> int:
    tensors = [leaf for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)]
    if not tensors and isinstance(
        batch, Mapping
    ):  # a mapping that torch does not know, as transformers' batches
        tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    if not tensors:
        raise ValueError(f"batches: expected tensors in a batch, got {type(batch).__name__}")
    return len(tensors[0]) if tensors[0].dim() else 1


def _call(model: nn.Module, batch: Any) -> None:
    args: Any = batch if isinstance(batch, tuple | list) else ()
    kwargs: Any = batch if isinstance(batch, Mapping) else {}
    if args is not batch and kwargs is not batch:
        args = (batch,)
    try:
        signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"batches: expected arguments of {type(model).__name__}.forward, got a batch of "
            f"{', '.join(kwargs) or len(args)} ({error}); labels do not belong into it"
        ) from None
    model(*args, **kwargs)
