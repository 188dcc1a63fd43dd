"""quanto's helpers for transformers models; the models are transformers' own, which load and save by themselves."""

from os import PathLike
from typing import Any

from torch import nn

from ...model import freeze
from ...qtypes import QType
from ...selection import Patterns
from .model import quantize


class QuantizedTransformersModel:
    """`quantize` and `from_pretrained` return the transformers model itself, so that `generate` and all else is there.

    Both need transformers, `save_pretrained` on what they return too.
    """

    auto_class = "AutoModel"

    @classmethod
    def quantize(
        cls,
        model: nn.Module,
        weights: QType | str | None = None,
        activations: QType | str | None = None,
        optimizer: Any = None,
        include: Patterns = None,
        exclude: Patterns = None,
    ) -> nn.Module:
        """The model, quantized in place and frozen; its `save_pretrained` writes packed weights."""
        from ...integrations.transformers import attach

        quantize(model, weights, activations, optimizer, include, exclude)
        freeze(model)
        return attach(model)

    @classmethod
    def from_pretrained(cls, path: str | PathLike[str], *args: Any, **options: Any) -> nn.Module:
        """What `save_pretrained` wrote, by transformers' class of the same kind, which takes the further arguments."""
        import transformers

        from ...integrations.transformers import attach  # noqa: F401  # importing it makes our files known

        return getattr(transformers, cls.auto_class).from_pretrained(path, *args, **options)  # type: ignore[no-any-return]


class QuantizedModelForCausalLM(QuantizedTransformersModel):
    """Language models that generate."""

    auto_class = "AutoModelForCausalLM"
