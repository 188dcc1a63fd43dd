"""A whole model: `quantize` in place, `freeze`."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from . import _native
from .nn import PackedWeight
from .nn.linear import is_conv1d
from .qtypes import QType, qint8, qtype_of
from .report import Report, rows_of
from .scheme import Scheme
from .selection import Patterns, Target, quantized_class, select


def quantize(
    model: nn.Module,
    weights: QType | str = qint8,
    activations: QType | str | None = None,
    *,
    group_size: int | None = None,
    symmetric: bool | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    rules: None = None,
    optimizer: str = "minmax",
) -> Report:
    """Turn the model's layers into quantized ones, in place; they stay trainable until `freeze`.

    By default every `nn.Linear` and Hugging Face `Conv1D`, and an `nn.Embedding` tied to one. `include` and `exclude` are
    globs over module names (one or several); a match means the module and all inside it; `include` is how an Embedding
    is chosen. `group_size=None` is the type's default (qint8 per channel, qint4 64, qint2 32), -1 per channel.

    Raises ValueError for a pattern that matches nothing, for NaN or infinity in a weight (named, with its index), for a
    model that is itself a single layer; the model is then as it was.
    """
    scheme = Scheme.resolve(weights, group_size, symmetric)
    activations = None if activations is None else qtype_of(activations, "activations", (qint8,))
    if rules is not None:
        raise ValueError(f"rules: expected None (rules are not supported yet), got {rules!r}")
    if optimizer != "minmax":
        raise ValueError(f"optimizer: expected 'minmax', got {optimizer!r}")
    if quantized_class(model) is not None:
        raise ValueError(
            f"model: expected a module that contains layers, got a single {type(model).__name__}, which cannot be "
            f"replaced in place; use rquant.{quantized_class(model).__name__}.from_float"  # type: ignore[union-attr]
        )
    targets, kept = select(model, include, exclude)
    wide = [_checked(target, scheme) for target in _progress(targets, "checking weights")]
    rows = rows_of(model, targets, wide, kept, scheme)
    for target in targets:
        _replace(model, target, scheme, activations)
    return Report(rows)


def freeze(model: nn.Module) -> None:
    """Replace the float weights of quantized layers by packed integers; tied layers share one copy.

    Raises ValueError, naming the layer, for NaN or infinity in a weight.
    """
    frozen: dict[
        tuple[int, Scheme], tuple[Tensor, PackedWeight]
    ] = {}  # holds the weights, so that ids stay theirs
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, PackedWeight) and not m.frozen]
    for name, layer in _progress(layers, "freezing"):
        weight = layer._parameters["weight"]
        _, partner = frozen.setdefault((id(weight), layer.scheme), (weight, layer))
        if partner is not layer:
            layer.hold(partner.held, like=weight)
            continue
        try:
            layer.freeze()
        except ValueError as error:
            raise ValueError(f"{name}.{error}" if name else str(error)) from None


def _progress(items: Sequence[Any], what: str) -> Iterable[Any]:
    """A bar, if this takes more than a second and tqdm is there."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return items
    return tqdm(items, desc=what, delay=1, leave=False)  # type: ignore[no-any-return]


def _checked(target: Target, scheme: Scheme) -> bool:
    """Raise for NaN or infinity. Returns whether some scale is too large or small for float16, where that is wanted."""
    weight = target.weight.detach()
    if weight.is_meta:
        return False
    name, module = target.users[0]
    stored: Tensor = weight.T if is_conv1d(module) else weight
    try:
        lo, hi = _native.ranges(stored.cpu().contiguous(), scheme.group_size)
    except _native.NotFinite as bad:
        index = bad.index
        if is_conv1d(module):  # the index of the user's own [in, out] tensor
            n, k = stored.shape
            index = index % k * n + index // k
        raise _native.NotFinite(index).named(f"{name}.weight", weight.shape) from None
    if scheme.per_channel:
        return False
    scale, _ = _native.qparams(lo, hi, scheme.bits, scheme.symmetric, half=True)
    return str(scale.dtype) == "torch.float32"


def _replace(model: nn.Module, target: Target, scheme: Scheme, activations: QType | None) -> None:
    made: dict[int, PackedWeight] = {}
    for name, module in target.users:
        if id(module) not in made:
            layer = quantized_class(module).wrap(module, scheme, activations)  # type: ignore[union-attr, attr-defined]
            if made:
                layer._parameters["weight"] = next(iter(made.values()))._parameters["weight"]
            layer.take_place_of(module)
            made[id(module)] = layer
        made[id(module)].become(model, name)
