"""`quantization_config`, by which transformers with rquant loads a directory: which layers are packed and how."""

from collections.abc import Mapping
from typing import Any

from ..io.safetensors_header import Spec
from .choice import Choice, Wish, absent_heads, module_of


def quantization_config(
    config: Mapping[str, Any], tensors: Mapping[str, Spec], choices: Mapping[str, Choice], wish: Wish
) -> dict[str, Any]:
    """For config.json, in JSON types: what `rquant.RQuantConfig` of a saved model is."""
    entries: dict[str, dict[str, Any]] = {}
    ties = []

    def add(kind: str, choice: Choice, name: str) -> None:
        activations = wish.activations_name if kind == "Linear" else None
        entry = {"class": kind, **choice.scheme.to_dict(), "activations": activations}
        entries.setdefault(repr(entry), {**entry, "names": []})["names"].append(name)

    for name, choice in choices.items():
        add(choice.kind, choice, module_of(name))
        heads = absent_heads(tensors, config)
        if choice.kind == "Embedding" and heads and tensors[name].shape[0] == config.get("vocab_size"):
            # the head reads the same weight; of these names the model has one, and the others are passed over
            for head in heads:
                add("Linear", choice, head)
                ties.append([name, f"{head}.weight"])
    return {
        "quant_method": "rquant",
        "version": 1,
        "weights": wish.scheme.qtype.name,
        "activations": wish.activations_name,
        "group_size": wish.scheme.group_size,
        "symmetric": wish.scheme.symmetric,
        "optimizer": wish.scheme.optimizer,
        "layers": list(entries.values()),
        "ties": ties,
    }
