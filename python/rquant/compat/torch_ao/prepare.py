"""`prepare`, `convert`, and the names that FX mode has for them."""

import copy
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ... import model as _model
from ...calibration import Calibration
from ...fuse import fold_bn
from ...nn.placing import place
from .fusion import QuantStub
from .qconfig import Plan, QConfigMapping, plans_of, put_qconfigs

PREPARED = "rquant_prepared"


class Preparation:
    """What a model has between `prepare` and `convert`: each call of it is a sample that calibrates its layers."""

    def __init__(self, model: nn.Module, plans: dict[str, Plan]) -> None:
        methods = {name: plan.method for name, plan in plans.items() if plan.method is not None}
        [(usual, _)] = Counter(methods.values()).most_common(1)
        others = {f"re:{re.escape(name)}": method for name, method in methods.items() if method != usual}
        symmetric = all(plans[name].symmetric for name in methods)
        self.calibration = _WithinCall(usual, symmetric=symmetric, overrides=others, model=model)
        self.ran = self.busy = False
        enter = model.register_forward_pre_hook(self.enter, with_kwargs=True)
        self.handles = [enter, model.register_forward_hook(self.leave, always_call=True)]

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a sample; the first one also shows where BatchNorm can be folded."""
        if self.busy:
            return
        if not self.ran:
            self.busy = True
            try:
                fold_bn(model, *args, **kwargs)
            finally:
                self.busy = False
            self.ran = True
        self.calibration.__enter__()

    def leave(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After it: new scales, unless an exception ended it."""
        if not self.busy:
            self.calibration.__exit__(None if output is not None else RuntimeError, None, None)

    def end(self) -> None:
        """No more samples."""
        for handle in self.handles:
            handle.remove()


class _WithinCall(Calibration):
    """One that is entered while the model's call has begun, and left before it ends."""

    UNDER_WAY = 1


def prepare(
    model: nn.Module,
    inplace: bool = False,
    allow_list: None = None,
    observer_non_leaf_module_list: None = None,
    prepare_custom_config_dict: None = None,
) -> nn.Module:
    """A copy of the model, or itself, whose layers learn their activations' ranges whenever it is called, until `convert`.

    The attribute `qconfig` of a module, torch's or one of here, holds for all inside it that has none of its own; None leaves
    float. Weights become int8 by output channel; the observer of activations names the method: HistogramObserver "mse",
    MinMaxObserver "minmax", MovingAverageMinMaxObserver with its constant, or any factory of `rquant.observers`. Zero points
    are 0 if all say symmetric.

    Nothing is traced and nothing needs to be marked: stubs pass what they get, `fuse_modules` may be left out, since
    BatchNorm is folded by the order that the first call shows, and additions and concatenations need no FloatFunctional.

    Raises ValueError for a model without a layer to quantize, for a dynamic qconfig, and for the arguments that rquant has
    no use for, unless they are None.
    """
    for argument, given in (
        ("allow_list", allow_list),
        ("observer_non_leaf_module_list", observer_non_leaf_module_list),
        ("prepare_custom_config_dict", prepare_custom_config_dict),
    ):
        if given is not None:
            raise ValueError(f"{argument}: expected None (see rquant.register_module), got {given!r}")
    model = model if inplace else copy.deepcopy(model)
    model.__dict__[PREPARED] = Preparation(model, quantized_plans(model))
    return model


def quantized_plans(model: nn.Module) -> dict[str, Plan]:
    """The plans of the model's QConfigs, its layers quantized by them."""
    if PREPARED in model.__dict__:
        raise ValueError("model: expected a float one, got one that is prepared")
    plans = plans_of(model)
    if all(plan.method is None for plan in plans.values()):
        raise ValueError(
            "model: expected a qconfig on it or in it, for a Linear or a convolution: model.qconfig = get_default_qconfig()"
        )
    rules: list[Any] = [(_exactly(name), plan.arguments) for name, plan in plans.items()]
    _model.quantize(model, include=[_exactly(name) for name in plans], rules=rules)
    return plans


def _exactly(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name))


def convert(
    module: nn.Module,
    mapping: None = None,
    inplace: bool = False,
    remove_qconfig: bool = True,
    is_reference: bool = False,
    convert_custom_config_dict: None = None,
) -> nn.Module:
    """A copy of the prepared model, or itself, frozen to integers with static scales, in eval mode; stubs are gone.

    Raises ValueError for a model that was not prepared, or not called since, and for the arguments that rquant has no use for.
    """
    for argument, given in (
        ("mapping", mapping),
        ("is_reference", is_reference or None),
        ("convert_custom_config_dict", convert_custom_config_dict),
    ):
        if given is not None:
            raise ValueError(f"{argument}: expected nothing (see rquant.register_module), got {given!r}")
    if PREPARED not in module.__dict__:
        raise ValueError("module: expected a model that `prepare` returned, got another")
    if not module.__dict__[PREPARED].ran:
        raise ValueError("module: expected a prepared model that was called on samples, got one that was not")
    model = module if inplace else copy.deepcopy(module)
    model.__dict__.pop(PREPARED).end()
    for name, child in list(model.named_modules(remove_duplicate=False)):
        if remove_qconfig and "qconfig" in child.__dict__:
            del child.qconfig
        if name and _is_stub(child):
            place(model, name, nn.Identity())
    model.eval()
    _model.freeze(model)
    return model


def quantize(
    model: nn.Module,
    run_fn: Callable[..., Any],
    run_args: Sequence[Any],
    mapping: None = None,
    inplace: bool = False,
) -> nn.Module:
    """`prepare` in eval mode, `run_fn(model, *run_args)`, which calls the model on samples, and `convert`; a copy unless `inplace`."""
    prepared = prepare(model if inplace else copy.deepcopy(model), inplace=True).eval()
    run_fn(prepared, *run_args)
    return convert(prepared, mapping, inplace=True)


def _is_stub(module: nn.Module) -> bool:
    cls = type(module)
    torchs = cls.__module__.startswith("torch.ao.") and cls.__name__ in ("QuantStub", "DeQuantStub")
    return torchs or isinstance(module, QuantStub)


def prepare_fx(
    model: nn.Module, qconfig_mapping: Any, example_inputs: tuple[Any, ...], **unused: None
) -> nn.Module:
    """`prepare` of a copy, in eval mode, with BatchNorm folded by the order that `example_inputs` show; no graph is made.

    `qconfig_mapping`: a QConfigMapping, torch's or ours, or torch's older form of a dict with "" for all.
    """
    _expect_none(unused)
    model = copy.deepcopy(model).eval()
    put_qconfigs(model, mapping_of(qconfig_mapping))
    fold_bn(model, *as_arguments(example_inputs))
    return prepare(model, inplace=True)


def convert_fx(model: nn.Module, **unused: None) -> nn.Module:
    """`convert` of a copy."""
    _expect_none(unused)
    return convert(model)


def mapping_of(given: Any) -> Any:
    """A QConfigMapping of what may be an older dict."""
    if not isinstance(given, Mapping):
        if not hasattr(given, "global_qconfig"):
            raise ValueError(f"qconfig_mapping: expected a QConfigMapping, got {given!r}")
        return given
    made = QConfigMapping().set_global(given.get(""))
    made.object_type_qconfigs = dict(given.get("object_type", ()))
    made.module_name_regex_qconfigs = dict(given.get("module_name_regex", ()))
    made.module_name_qconfigs = dict(given.get("module_name", ()))
    return made


def as_arguments(example_inputs: Any) -> tuple[Any, ...]:
    """Torch wants a tuple, and takes a single tensor."""
    return tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)


def _expect_none(unused: Mapping[str, Any]) -> None:
    for argument, given in unused.items():
        if given is not None:
            raise ValueError(f"{argument}: expected None, got {given!r}")
