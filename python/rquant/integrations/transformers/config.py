"""`RQuantConfig`: what `from_pretrained` is asked for, and what a saved model's config.json says of it."""

import copy
import re
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from ...qtypes import CASTS, WEIGHTS, QType, qint8, qtype_of
from ...rules import Choice, Rules, rules_to_json
from ...selection import Patterns

METHOD = "rquant"
VERSION = 1


class RQuantConfig(QuantizationConfigMixin):
    """The arguments of `rquant.quantize`, for `from_pretrained(..., quantization_config=RQuantConfig("int4"))`.

    `modules_to_not_convert`: names as other methods of transformers take them; a module stays float whose name is one of
    them, ends in one or lies inside one. `include` and `exclude` are globs over module names, and one that matches nothing
    is an error. Nothing is left out by default: the output layer is quantized, and an embedding tied to it.

    `optimizer` is a name ("minmax", "absmax", "mse", "hqq"); an object of your own needs `rquant.quantize` and `attach`.
    `outliers` is a threshold. Columns that `record_outliers` fixed later are saved with their layers.

    `layers` and `ties` are written by `save_pretrained`: every packed layer with its scheme, so that what is read back does
    not depend on how it was chosen. All of it is JSON. Raises ValueError for an impossible scheme and a newer version.
    """

    def __init__(
        self,
        weights: QType | str = qint8,
        activations: QType | str | None = None,
        group_size: int | tuple[int, int] | None = None,
        symmetric: bool | None = None,
        *,
        include: Patterns = None,
        exclude: Patterns = None,
        modules_to_not_convert: list[str] | None = None,
        rules: Rules = None,
        optimizer: str = "minmax",
        outliers: float | None = None,
        version: int = VERSION,
        layers: list[dict[str, Any]] | None = None,
        ties: list[list[str]] | None = None,
        quant_method: str = METHOD,
    ) -> None:
        if quant_method != METHOD:
            raise ValueError(f"quant_method: expected {METHOD!r}, got {quant_method!r}")
        if version > VERSION:
            raise ValueError(f"version: expected {VERSION} or older, got {version}; a newer rquant wrote it")
        self.quant_method = METHOD
        if not isinstance(optimizer, str):
            raise ValueError(f"optimizer: expected a name, which JSON can keep, got {optimizer!r}")
        choice = Choice.resolve(weights, activations, group_size, symmetric, optimizer, outliers)
        chosen = choice.options["activations"]
        self.weights = choice.scheme.qtype.name
        self.activations = None if chosen is None else chosen.name
        self.group_size = group_size
        self.symmetric = symmetric
        self.include = _listed(include)
        self.exclude = _listed(exclude)
        self.modules_to_not_convert = _listed(modules_to_not_convert)
        self.rules = None if rules is None else rules_to_json(rules)
        self.optimizer = optimizer
        self.outliers = choice.options["outliers"]
        self.version = version
        self.layers = layers
        self.ties = ties

    def quantize_arguments(self) -> dict[str, Any]:
        """Keywords for `rquant.quantize`, but for the choice of modules."""
        names = ("weights", "activations", "group_size", "symmetric", "rules", "optimizer", "outliers")
        return {name: getattr(self, name) for name in names}

    @property
    def bits(self) -> int:
        """Bits of one weight, where no rule says otherwise."""
        return qtype_of(self.weights, "weights", (*WEIGHTS, *CASTS)).bits

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; what is None is left out."""
        return copy.deepcopy({name: value for name, value in self.__dict__.items() if value is not None})

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: 4.57 prints it."""
        return self.to_dict()


def _listed(patterns: Patterns) -> list[str] | None:
    if patterns is None:
        return None
    several = [patterns] if isinstance(patterns, str | re.Pattern | type) else list(patterns)
    return [match for match, _ in rules_to_json((pattern, None) for pattern in several)]
