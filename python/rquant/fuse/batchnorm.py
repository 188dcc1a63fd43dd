"""BatchNorm folded into the convolution or linear layer before it, in the order that a run of the model shows."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from ..nn import PackedWeight
from ..nn.placing import place, take_hooks
from .observe import observe, run
from .pairs import Pairs
from .report import FoldReport, FoldRow


def fold_bn(model: nn.Module, *args: Any, **kwargs: Any) -> FoldReport:
    """Fold each BatchNorm that can be into the layer before it, in place; `args` and `kwargs` are sample inputs of the model.

    The model is run once in eval mode, as it is. Where a BatchNorm gets the very tensor that a Conv1d/2d/3d,
    ConvTranspose1d/2d/3d or Linear returned, and nothing else reads that tensor, the layer takes over, per output channel,

        w' = w * gamma / sqrt(var + eps)      b' = (b - mean) * gamma / sqrt(var + eps) + beta

    (Jacob et al. 2017, section 3.2, <https://arxiv.org/abs/1712.05877>; computed in float64, rounded once to the weight's
    dtype), and an `nn.Identity` stands where the BatchNorm was. Neither names nor the order of children count. The weight
    stays the same Parameter; a bias is made where there was none. Layers of `rquant.quantize` that are not frozen yet are
    folded too.

    What stays, and why, is in the report: a layer that runs several times, is shared, has a shared, computed or frozen
    weight, whose output has another reader or is returned, or whose hooks see it; a BatchNorm that uses the batch's own
    statistics. Only what the sample makes run is known: give one that takes the usual way through the model.

    The folded model is the eval model: in training it normalizes by the running statistics, no longer by the batch's.
    A second run on the sample gives the report's `difference`, about 1e-6 in float32. If it shows other outputs, the model
    is put back as it was and ValueError raised: such a model is random, keeps state, or reads what no run shows.
    """
    if not args and not kwargs:
        raise ValueError("args: expected sample inputs of the model after it, got none")
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("model: expected parameters with values, got some on meta")
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    norms = [module for module in names if isinstance(module, _BatchNorm)]
    seen = observe(model, [m for m in names if isinstance(m, _BatchNorm | _ConvNd | nn.Linear)], args, kwargs)
    before, pairs = _floats(seen.result), Pairs(names, seen)
    rows: list[FoldRow] = []
    folds: list[Fold] = []
    for norm in norms:
        layer, reason = pairs.layer_before(norm), pairs.why_not(norm)
        if layer is not None and not reason:
            fold = Fold(layer, norm, names[norm][0])
            reason = fold.refusal()
            folds += [] if reason else [fold]
        rows.append(FoldRow(names[norm][0], None if layer is None else names[layer][0], reason))
    try:
        for fold in folds:
            fold.do(model)
        after = _floats(run(model, args, kwargs)) if folds else before
        difference = _difference(before, after)
        if difference > _most(folds, before):
            raise ValueError(
                f"model: expected the same outputs as before, got {difference:.1e} of the largest output between them, and put it "
                "back: is it random, does it keep state, or does something read its tensors unseen, through numpy say?"
            )
    except BaseException:
        for fold in folds:
            fold.undo(model)
        raise
    return FoldReport(rows, difference)


class Fold:
    """One layer and the BatchNorm of this name after it, with what the layer's parameters become."""

    def __init__(self, layer: nn.Module, norm: nn.Module, name: str) -> None:
        self.layer, self.norm, self.name = layer, norm, name
        weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
        assert weight is not None  # Pairs.why_not says so
        self.weight, self.bias = weight, bias
        self.old = weight.data, None if bias is None else bias.data
        self.new = _folded(layer, *self.old, norm)

    def refusal(self) -> str:
        """Why not, after all; "" if it can be done."""
        if all(bool(tensor.isfinite().all()) for tensor in self.new):
            return ""
        return f"the folded weight would not be finite in {str(self.weight.dtype).removeprefix('torch.')}"

    def do(self, model: nn.Module) -> None:
        self.weight.data = self.new[0]
        if self.bias is None:
            self.layer._parameters["bias"] = nn.Parameter(self.new[1], self.weight.requires_grad)
        else:
            self.bias.data = self.new[1]
        identity = nn.Identity()
        take_hooks(identity, self.norm)
        place(model, self.name, identity)

    def undo(self, model: nn.Module) -> None:
        self.weight.data = self.old[0]
        self.layer._parameters["bias"] = self.bias
        if self.bias is not None and self.old[1] is not None:
            self.bias.data = self.old[1]
        place(model, self.name, self.norm)


def _folded(layer: nn.Module, weight: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The weight and bias that do what `layer` and then `norm` did, of the weight's dtype."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    factor = gamma / torch.sqrt(variance + norm.eps)
    shift = beta - mean * factor if bias is None else (bias.double() - mean) * factor + beta
    ones = [1] * (weight.dim() - 2)
    if isinstance(
        layer, _ConvTransposeNd
    ):  # [in, out / groups, ...]: the channels of a group of inputs are a group
        grouped = weight.double().unflatten(0, (layer.groups, -1))
        scaled = (grouped * factor.reshape(layer.groups, 1, -1, *ones)).flatten(0, 1)
    else:
        scaled = weight.double() * factor.reshape(-1, 1, *ones)
    return scaled.to(weight.dtype), shift.to(weight.dtype if bias is None else bias.dtype)


def _floats(result: Any) -> list[Tensor]:
    """Copies of the floating tensors of a model's output."""
    return [
        leaf.clone() for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def _difference(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest difference in an output, relative to the largest number in that output."""
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        a, b = old.double(), new.double()
        apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
        largest = a[a.isfinite()].abs().max().item() if a.isfinite().any() else 0.0
        if a.numel():
            worst = max(worst, apart.nan_to_num(math.inf).max().item() / (largest or 1.0))
    return worst


def _most(folds: list[Fold], before: list[Tensor]) -> float:
    """What rounding may change, generously; anything is possible where a weight is quantized anew."""
    if any(isinstance(fold.layer, PackedWeight) for fold in folds):
        return math.inf
    dtypes = {tensor.dtype for tensor in [*before, *(fold.weight for fold in folds)]}
    return 1000 * max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
