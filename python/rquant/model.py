"""A whole model: `quantize` in place, `freeze`."""

from typing import Literal

from torch import Tensor, nn

from . import _native
from .nn import PackedWeight, Unpacked, storage
from .nn.placing import place, take_hooks
from .nn.registry import registration_of
from .nn.static import StaticInput
from .progress import each
from .qtypes import QType, qint8
from .report import Report, rows_of
from .rules import Choice, Rules, resolve_rules
from .scheme import GroupSize, Optimizer, Scheme
from .selection import Patterns, Target, Tree, select


def quantize(
    model: nn.Module,
    weights: QType | str = qint8,
    activations: QType | str | None = None,
    *,
    group_size: GroupSize = None,
    symmetric: bool | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    rules: Rules = None,
    optimizer: str | Optimizer = "minmax",
    outliers: float | None = None,
    requantization: Literal["fixed"] | None = None,
) -> Report:
    """Turn the model's layers into quantized ones, in place; they stay trainable until `freeze`.

    By default every `nn.Linear` and Hugging Face `Conv1D`, what `register_module` added, and an `nn.Embedding` tied to
    one. `include` and `exclude` are globs over module names (one or several; or else what a rule's match may be); a match
    means the module and all inside it; `include` is how an Embedding is chosen. `group_size=None` is the type's default
    (qint8 per channel, qint4 64, qint2 32), -1 per channel, (r, c) blocks of r rows and c columns. `outliers`, a threshold (6.0 is LLM.int8()'s), has a Linear
    with int8 activations multiply in float what columns of its input reach it; `record_outliers` then fixes which. A
    model that is itself one layer stays the same object and changes its class.

    `optimizer` chooses scales and zero points: "minmax"; "absmax"; "mse", the part of each range with the least squared
    error; "hqq", fractional zero points by half-quadratic quantization (affine only); or an object, see
    `rquant.optimize`. Until `freeze` it acts anew in each forward, so that freezing changes no output.

    `rules` are pairs (match, scheme) in order; the first that matches a layer holds for it instead of the arguments
    above. A match is a glob, a regular expression (`re.Pattern`, or `"re:..."`) for the whole name, or a module class
    (or `"type:Name"`), and means all inside it too. A scheme is None to leave float, a qtype, or a dict of `weights`,
    `activations`, `group_size`, `symmetric`, `optimizer`, `outliers`, `requantization`. A rule with a scheme chooses what it matches, as `include`
    does; it cannot choose what `exclude` leaves out or a given `include` leaves aside. A tied weight follows the rule
    for any of its users; two rules that disagree on one weight are an error.

    `requantization="fixed"`: once calibrated, int8 outputs are made of int32 sums by an int32 bias, multiplier and shift, as
    hardware without floats does it, on the CPU and of weights with a scale a channel (see `rquant.nn.fixed_point`).

    `weights` "float16" and "bfloat16" are casts: the layers chosen keep such weights and compute in the input's dtype, while
    norms and all else stay as they are; a weight beyond float16's 65504 is an error.

    Raises ValueError for a pattern or rule that matches nothing and for NaN or infinity in a weight (named, with its
    index); the model is then as it was.
    """
    arguments = {
        "weights": weights,
        "activations": activations,
        "group_size": group_size,
        "symmetric": symmetric,
        "optimizer": optimizer,
        "outliers": outliers,
        "requantization": requantization,
    }
    default = Choice.resolve(**arguments)  # type: ignore[arg-type]
    tree, targets, kept = select(model, include, exclude, resolve_rules(rules, arguments), default)
    wide = [_checked(target) for target in each(targets, "checking weights")]
    rows = rows_of(tree, targets, wide, kept)
    _open(model, tree)
    for target in targets:
        _replace(model, target)
    return Report(rows)


def freeze(model: nn.Module) -> None:
    """Replace the float weights of quantized layers by packed integers; tied layers share one copy.

    Raises ValueError, naming the layer, for NaN or infinity in a weight.
    """
    layers: dict[tuple[int, Scheme], list[tuple[str, PackedWeight]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedWeight) and not module.frozen:
            key = id(module._parameters["weight"]), module.scheme
            layers.setdefault(key, []).append((name, module))
    for (name, layer), *partners in each(list(layers.values()), "freezing"):
        weight = layer._parameters["weight"]
        try:
            layer.freeze()
        except ValueError as error:
            raise ValueError(f"{name}.{error}" if name else str(error)) from None
        for _, partner in partners:
            partner.hold(layer.held, like=weight)
    for module in model.modules():
        if isinstance(module, StaticInput | PackedWeight):
            module.settle()


def _checked(target: Target) -> bool:
    """Raise for NaN or infinity. Returns whether some scale is too large or small for float16, where that is wanted."""
    name, module = target.users[0]
    kind: type[PackedWeight] = registration_of(module).quantized  # type: ignore[union-attr]
    if issubclass(kind, Unpacked) or target.weight.is_meta:
        return False
    weight, scheme = target.weight.detach(), target.choice.scheme
    stored: Tensor = kind.matrix_of(module, weight)
    try:
        lo, hi = _native.ranges(stored.cpu().contiguous(), scheme.group_size)
        storage.check_cast(stored, scheme)
    except _native.NotFinite as bad:
        bad.index = kind.float_index(module, weight.shape, bad.index)
        full_name = f"{name}.weight" if name else "weight"
        raise bad.named(full_name, weight.shape) from None
    if scheme.per_channel:
        return False
    scale, _ = _native.qparams(lo, hi, scheme.kind, scheme.symmetric, half=True)
    return str(scale.dtype) == "torch.float32"


def _open(model: nn.Module, tree: Tree) -> None:
    """Put the containers where the modules were that they were made of."""
    for name, container in tree.containers.items():
        take_hooks(container, tree.whole[name])
        place(model, name, container)


def _replace(model: nn.Module, target: Target) -> None:
    made: dict[int, PackedWeight] = {}
    for name, module in target.users:
        if id(module) not in made:
            cls = registration_of(module).quantized  # type: ignore[union-attr]
            options = {key: value for key, value in target.choice.options.items() if key in cls.OPTIONS}
            scheme = () if issubclass(cls, Unpacked) else (target.choice.scheme,)
            layer: PackedWeight = cls.wrap(module, *scheme, **options)
            if made:
                layer._parameters["weight"] = next(iter(made.values()))._parameters["weight"]
            take_hooks(layer, module)
            made[id(module)] = layer
        place(model, name, made[id(module)])
