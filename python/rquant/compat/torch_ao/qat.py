"""`prepare_qat`: a training loop written for torch.ao, with rquant's rounding in it."""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ... import qat
from ...calibration import Calibration
from ...observers.methods import observer_of
from ...qat.batch_norm import InnerBatchNorm
from ...qat.ranges import ObservedRange
from .prepare import PREPARED, as_arguments, convert, mapping_of, quantized_plans
from .qconfig import Plan, put_qconfigs


class QATPreparation:
    """What waits for the first batch, which begins the ranges and shows where BatchNorm goes."""

    def __init__(self, model: nn.Module, plans: dict[str, Plan]) -> None:
        methods = [plan.method for plan in plans.values() if plan.method is not None]
        [(self.method, _)] = Counter(methods).most_common(1)
        self.symmetric = all(plan.symmetric for plan in plans.values() if plan.method is not None)
        self.ran = False
        self.handle = model.register_forward_pre_hook(self.begin, with_kwargs=True)

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the first call."""
        self.handle.remove()
        qat.fold_bn(model, *args, **kwargs)
        modes = [(module, module.training) for module in model.modules()]
        try:
            with Calibration(self.method, symmetric=self.symmetric, model=model):
                model.eval()(*args, **kwargs)
        finally:
            for module, training in modes:
                module.training = training
        method = self.method
        qat.prepare(model, weights="rounded", activations="observed", observer=lambda: observer_of(method))
        self.ran = True

    def end(self) -> None:
        """Training is over."""
        self.handle.remove()


def prepare_qat(model: nn.Module, mapping: None = None, inplace: bool = False) -> nn.Module:
    """A copy of the model, or itself, that trains with the rounding of deployment in it, until `convert`.

    QConfigs as in `prepare`; the most frequent observer holds for all layers, and sees every batch in training mode. The
    first batch begins the ranges, and shows which layer each BatchNorm normalizes: it trains on inside that layer. Parameters
    stay the objects that they are, so that an optimizer may be made before. Raises ValueError as `prepare`.
    """
    if mapping is not None:
        raise ValueError(f"mapping: expected None (see rquant.register_module), got {mapping!r}")
    model = model if inplace else copy.deepcopy(model)
    model.__dict__[PREPARED] = QATPreparation(model, quantized_plans(model))
    return model


def prepare_qat_fx(model: nn.Module, qconfig_mapping: Any, example_inputs: Any, **unused: None) -> nn.Module:
    """`prepare_qat` of a copy; `example_inputs` are not needed, since the first batch shows what they would."""
    as_arguments(example_inputs)
    model = copy.deepcopy(model)
    put_qconfigs(model, mapping_of(qconfig_mapping))
    return prepare_qat(model, inplace=True)


def quantize_qat(
    model: nn.Module, run_fn: Callable[..., Any], run_args: Sequence[Any], inplace: bool = False
) -> nn.Module:
    """`prepare_qat` in training mode, `run_fn(model, *run_args)`, which trains the model, and `convert`; a copy unless `inplace`."""
    prepared = prepare_qat(model if inplace else copy.deepcopy(model), inplace=True).train()
    run_fn(prepared, *run_args)
    return convert(prepared, inplace=True)


def disable_observer(module: nn.Module) -> None:
    """For `model.apply`: ranges of activations stay as they are."""
    if isinstance(module, ObservedRange):
        module.frozen = True


def enable_observer(module: nn.Module) -> None:
    """For `model.apply`: ranges of activations follow the batches again."""
    if isinstance(module, ObservedRange):
        module.frozen = False


def freeze_bn_stats(module: nn.Module) -> None:
    """For `model.apply`, as `torch.ao.nn.intrinsic.qat.freeze_bn_stats`: BatchNorm by its running statistics from now on."""
    if isinstance(module, InnerBatchNorm):
        module.frozen = True
        module.train(module.training)
