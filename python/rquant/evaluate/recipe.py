"""A way to quantize, written as `int4,group_size=32,activations=int8`, and quantized twins of a model."""

import copy
import inspect
import json
import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..model import freeze, quantize
from ..qtypes import qtype_of

FLOAT = "float"
_OPTIONS = tuple(inspect.signature(quantize).parameters)[2:]


@dataclass(frozen=True)
class Recipe:
    """Arguments of `rquant.quantize`. `weights=None` leaves the model as it is."""

    name: str
    weights: str | None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """`float`, or a type and options of `rquant.quantize`: `int4,group_size=32,exclude=lm_head`; values are JSON or words.

        Raises ValueError for another type or option.
        """
        weights, *rest = re.split(r",(?![^\[]*\])", text.strip())  # not within the brackets of a list
        if weights == FLOAT and not rest:
            return cls(FLOAT, None)
        options = {}
        for part in rest:
            key, equals, value = part.partition("=")
            if not equals or key not in _OPTIONS:
                raise ValueError(
                    f"scheme: expected type,option=value,... with options {', '.join(_OPTIONS)}; got {text!r}"
                )
            try:
                options[key] = json.loads(value)
            except ValueError:
                options[key] = value
        qtype_of(weights, "scheme")
        return cls(text.strip(), weights, options)

    def build(self, model: nn.Module) -> nn.Module:
        """A quantized, frozen twin, which shares with `model` the tensors that stay float; `model` itself for "float"."""
        if self.weights is None:
            return model
        twin = copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})
        quantize(twin, self.weights, **self.options)
        freeze(twin)
        return twin


def resident_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, packed or float; what is shared counts once."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
