"""The conversion that transformers 5.x runs on a float weight between reading and placing it."""

from typing import TYPE_CHECKING, Any

from transformers.core_model_loading import ConversionOps

if TYPE_CHECKING:
    from .quantizer import RQuantHfQuantizer


class QuantizeOnLoad(ConversionOps):  # type: ignore[misc]
    """Freezes layers to the weights among the tensors; the rest goes through. Not reversed: packed is how they are saved."""

    def __init__(self, hf_quantizer: "RQuantHfQuantizer") -> None:
        self.hf_quantizer = hf_quantizer

    def convert(
        self, input_dict: dict[str, Any], *, model: Any = None, missing_keys: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """`input_dict`: full names to tensors, or lists of one. Returns those that transformers shall place."""
        others = {}
        for name in list(input_dict):
            value = input_dict.pop(name)
            value = value[0] if isinstance(value, list) else value
            if not self.hf_quantizer.param_needs_quantization(model, name):
                others[name] = value
                continue
            path, _, key = name.rpartition(".")
            self.hf_quantizer.quantize_into(model, path, key, value)
            if missing_keys is not None:
                missing_keys.discard(name)
        return others
