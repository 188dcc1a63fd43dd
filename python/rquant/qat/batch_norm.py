"""BatchNorm inside the layer before it, while both train.

The weight is rounded as it will be deployed, folded with the running statistics; then the product is scaled back and
normalized by the batch's own statistics, so that these train on as ever (Krishnamoorthi 2018, section 3.2.2,
<https://arxiv.org/abs/1806.08342>). In eval mode and with frozen statistics only the folded weight and bias are left.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..fuse.observe import observe
from ..fuse.pairs import Pairs
from ..fuse.report import FoldRow
from ..nn import PackedWeight
from ..nn.placing import place, take_hooks
from .flags import Flags
from .recomputation import recomputing


class InnerBatchNorm(Flags):
    """The BatchNorm `norm` of a layer's output channels, as the layer's child `batch_norm`."""

    _before: tuple[Tensor, Tensor] | None = None
    """The running mean and variance before the last batch."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.norm, self.frozen = norm, False
        self.train(norm.training)

    def train(self, mode: bool = True) -> "InnerBatchNorm":
        """As torch's; frozen statistics stay frozen."""
        super().train(mode)
        self.norm.train(mode and not self.frozen)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.train(self.training)  # as loaded: frozen or not

    @property
    def live(self) -> bool:
        """Whether it normalizes by the batch's own statistics now."""
        return self.norm.training

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """The running mean and variance, before a batch that is run again those before it."""
        if self._before is not None and self.live and recomputing():
            return self._before
        return self.norm.running_mean, self.norm.running_var  # type: ignore[return-value]

    def factor(self) -> Tensor:
        """`gamma / sqrt(running variance + eps)`, float32 `[channels]`."""
        norm = self.norm
        spread = torch.sqrt(self._statistics()[1].float() + norm.eps)
        return spread.reciprocal() if norm.weight is None else norm.weight.float() / spread

    def fold_weight(self, weight: Tensor) -> Tensor:
        """The weight `[channels, k]` that has the running statistics in it."""
        return (weight * self._safe().unsqueeze(1)).to(weight.dtype)

    def fold_bias(self, bias: Tensor | None) -> Tensor:
        """The bias `[channels]` that goes with it: `(bias - mean) * factor + beta`."""
        norm = self.norm
        mean = norm.running_mean.float()
        shift = (-mean if bias is None else bias.float() - mean) * self.factor()
        return shift if norm.bias is None else shift + norm.bias.float()

    def _safe(self) -> Tensor:
        """The factor, but for a channel whose gamma is 0: its weight is divided by what it was multiplied by."""
        factor = self.factor()
        tiny = 1e-8
        return torch.where(factor.abs() < tiny, tiny, factor)

    def forward(self, out: Tensor, bias: Tensor | None) -> Tensor:
        """The product with the folded weight `[N, channels, ...]`, without bias, as the layer and its BatchNorm would have it."""
        shape = (1, -1, *[1] * (out.dim() - 2))
        out = out / self._safe().to(out.dtype).reshape(shape)
        out = out if bias is None else out + bias.to(out.dtype).reshape(shape)
        if recomputing():
            return self._again(out)
        if not torch.compiler.is_compiling():
            mean, var = self._statistics()
            self._before = mean.clone(), var.clone()
        return self.norm(out)  # type: ignore[no-any-return]

    def _again(self, out: Tensor) -> Tensor:
        """Normalized by the batch; the running statistics know it already."""
        buffers = dict(self.norm._buffers)
        try:
            self.norm._buffers.update({n: t if t is None else t.clone() for n, t in buffers.items()})
            return self.norm(out)  # type: ignore[no-any-return]
        finally:
            self.norm._buffers.update(buffers)


def fold_bn(model: nn.Module, *args: Any, **kwargs: Any) -> list[FoldRow]:
    """Move each BatchNorm that can be into the quantized layer before it, in place, to train there; `args` and `kwargs` are
    sample inputs of the model.

    As `rquant.fold_bn`, which is for models that train no more: one run in eval mode shows which layer's output each
    BatchNorm gets, and an `nn.Identity` takes its place. The parameters and statistics stay the same tensors, now at the
    layer's `batch_norm.norm`. Call it after `rquant.quantize` and before `Calibration`: what a BatchNorm still computes in
    float keeps int8 from flowing. `rquant.freeze` folds for good.

    One row a BatchNorm, with the reason why it stays. Raises ValueError without sample inputs.
    """
    if not args and not kwargs:
        raise ValueError("args: expected sample inputs of the model after it, got none")
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    watched = [m for m in names if isinstance(m, _BatchNorm | _ConvNd | nn.Linear)]
    pairs = Pairs(names, observe(model, watched, args, kwargs))
    rows = []
    for norm in names:
        if not isinstance(norm, _BatchNorm):
            continue
        layer, reason = pairs.layer_before(norm), pairs.why_not(norm)
        if layer is not None and not reason and not isinstance(layer, PackedWeight):
            reason = f"{names[layer][0]} is not quantized"
        rows.append(FoldRow(names[norm][0], None if layer is None else names[layer][0], reason))
        if layer is not None and not reason:
            identity = nn.Identity()
            take_hooks(identity, norm)
            place(model, names[norm][0], identity)
            layer.add_module("batch_norm", InnerBatchNorm(norm))
    return rows


def freeze_bn_stats(model: nn.Module, frozen: bool = True) -> None:
    """Have BatchNorms inside layers normalize by their running statistics in training too, and leave these alone; or not.

    Their gamma and beta train on. For the last steps of training: they then see the arithmetic that is deployed.
    """
    for module in model.modules():
        if isinstance(module, InnerBatchNorm):
            module.frozen = frozen
            module.train(module.training)
