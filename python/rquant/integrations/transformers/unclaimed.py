"""Packed tensors of a checkpoint that no layer of the model takes: its layers under other names would be left random."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from ...nn import storage


def watch(model: nn.Module, told: Callable[[Iterable[str]], None]) -> None:
    """Transformers 5 gives a quantizer no look at the unexpected keys that it finds: have `told` get them, once."""
    adjust: Any = getattr(model, "_adjust_missing_and_unexpected_keys", None)
    if adjust is None:
        return

    def adjust_and_tell(*args: Any) -> Any:
        del model._adjust_missing_and_unexpected_keys
        result = adjust(*args)
        told(args[0].unexpected_keys)
        return result

    model._adjust_missing_and_unexpected_keys = adjust_and_tell  # type: ignore[assignment]


def refuse(model: nn.Module, unexpected: Iterable[str]) -> None:
    """Raises ValueError for packed tensors among these keys, but for those of a head that this class of model lacks."""
    saved_as: list[str] = getattr(model.config, "architectures", None) or []
    inner: Any = getattr(model, "base_model", model)
    parts = {model.base_model_prefix, *dict(model.named_children()), *dict(inner.named_children())}
    packed = sorted(key for key in unexpected if key.rpartition(".")[2] in storage.CANONICAL)
    unclaimed = [key for key in packed if type(model).__name__ in saved_as or key.partition(".")[0] in parts]
    if unclaimed:
        shown = ", ".join(unclaimed[:6]) + (f" and {len(unclaimed) - 6} more" if unclaimed[6:] else "")
        raise ValueError(
            f"{shown}: packed in the checkpoint, but {type(model).__name__} has no such packed layer; expected the model "
            "and the quantization_config that they were saved with"
        )
