"""`fuse_modules` and the stubs: what eager mode asks of a user by hand, and rquant sees for itself when a model runs."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ...fuse.batchnorm import Fold

_LAYER, _NORM, _RELU = (_ConvNd, nn.Linear), (_BatchNorm,), (nn.ReLU, nn.ReLU6)
_FUSED = [(_LAYER, _NORM, _RELU), (_LAYER, _NORM), (_LAYER, _RELU), (_NORM, _RELU)]


class QuantStub(nn.Identity):
    """Marks where torch turns floats to integers. Here a layer does that by itself: the stub passes what it gets.

    `qconfig` is accepted and kept as torch keeps it. Torch's own stubs may stay in the model as well.
    """

    def __init__(self, qconfig: Any = None) -> None:
        super().__init__()
        if qconfig:
            self.qconfig = qconfig


class DeQuantStub(QuantStub):
    """Marks where torch turns integers to floats. What a model returns is floats anyway."""


class QuantWrapper(nn.Module):
    """`module` between a `quant` and a `dequant` stub, with torch's names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(getattr(module, "qconfig", None)), DeQuantStub()
        self.module = module
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """`module` on the same arguments."""
        return self.dequant(self.module(*map(self.quant, args), **kwargs))


def fuse_modules(
    model: nn.Module, modules_to_fuse: Sequence[str] | Sequence[Sequence[str]], inplace: bool = False
) -> nn.Module:
    """Fold each BatchNorm of a list of names ("conv", "bn", "relu") into the layer before it; a copy unless `inplace`.

    Needed by nobody who gives `prepare` a model to run: there it happens by itself. That ReLU is computed with the layer
    needs no word either. That modules listed together follow each other, and that nothing else reads between them, is taken
    on trust, as by torch. Raises ValueError for a name that is none of the model's, for kinds of modules that do not fuse,
    and for a BatchNorm in training mode (`fuse_modules_qat` leaves it to train).
    """
    return _fuse(model, modules_to_fuse, inplace, training=False)


def fuse_modules_qat(
    model: nn.Module, modules_to_fuse: Sequence[str] | Sequence[Sequence[str]], inplace: bool = False
) -> nn.Module:
    """The model, the lists checked: `prepare_qat` moves each BatchNorm into its layer, to train there."""
    return _fuse(model, modules_to_fuse, inplace, training=True)


def _fuse(model: nn.Module, modules_to_fuse: Any, inplace: bool, training: bool) -> nn.Module:
    lists = [modules_to_fuse] if all(isinstance(names, str) for names in modules_to_fuse) else modules_to_fuse
    model = model if inplace else copy.deepcopy(model)
    folds = []
    for names in lists:
        modules = [_module(model, name) for name in names]
        if not any(len(kinds) == len(modules) and all(map(isinstance, modules, kinds)) for kinds in _FUSED):
            types = ", ".join(f"{name} ({type(m).__name__})" for name, m in zip(names, modules, strict=True))
            raise ValueError(
                f"modules_to_fuse: expected convolution or Linear, BatchNorm, ReLU in this order, two of them or all; got {types}"
            )
        if not training and isinstance(modules[0], _LAYER) and isinstance(modules[1], _BatchNorm):
            folds.append(_checked(names[1], *modules[:2]))
    if len({fold.layer for fold in folds}) < len(folds):
        raise ValueError(f"modules_to_fuse: expected each layer once, got {list(lists)}")
    for fold in folds:
        fold.do(model)
    return model


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(
            f"modules_to_fuse: expected names of modules, {name!r} is none of this model's"
        ) from None


def _checked(name: str, layer: nn.Module, norm: nn.Module) -> Fold:
    if norm.training or norm.running_mean is None:
        raise ValueError(
            f"modules_to_fuse: expected {name} in eval mode, with running statistics: call model.eval() first, or fuse_modules_qat"
        )
    fold = Fold(layer, norm, name)
    if why := fold.refusal():
        raise ValueError(f"modules_to_fuse: {name}: {why}")
    return fold
