"""GPT-2's bytes, in float32 and as LLM.int8(), summed over its real tensors term by term; no weights are needed.

    python examples/gpt2_sizes.py

The figures that are told of it, 510,342,192 and 176,527,896, hold 12 causal masks, which transformers 5 no longer keeps:
without them 497,759,232 and 163,944,960. Neither counts scales; the last term here does.
"""

from collections.abc import Mapping

from table import print_table
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import rquant
from rquant.nn import storage

CODES, SCALES, BUFFERS = "int8 codes", "scales of the codes", "buffers"


def mask_bytes(itemsize: int) -> int:
    """What older transformers keep besides: in each of 12 blocks a mask, uint8 [1024, 1024], and a float."""
    return 12 * (1024 * 1024 + itemsize)


def terms(model: nn.Module) -> dict[str, int]:
    """Bytes of the canonical tensors by kind; what is shared counts once."""
    found: dict[str, int] = {}
    parameters = {name for name, _ in model.named_parameters()}
    seen = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen:  # the head is the embedding
            continue
        seen.add(tensor.data_ptr())
        prefix, _, key = name.rpartition(".")
        module = model.get_submodule(prefix)
        if key in storage.CANONICAL:
            kind = CODES if key == "weight_packed" else SCALES
        elif name not in parameters:
            kind = BUFFERS
        else:
            linear = type(module).__name__ == "Conv1D" and key == "weight"
            what = (
                "linear layers"
                if linear
                else "embeddings"
                if isinstance(module, nn.Embedding)
                else "biases and norms"
            )
            kind = f"{what}, {str(tensor.dtype).removeprefix('torch.')}"
        found[kind] = found.get(kind, 0) + tensor.nbytes
    return found


def show(title: str, found: Mapping[str, int], masks: int) -> None:
    """The terms, their sum, and the sum as it is usually told."""
    total = sum(found.values())
    told = total - found.get(SCALES, 0) + (0 if BUFFERS in found else masks)
    rows = [[kind, f"{count:,}"] for kind, count in found.items()]
    rows += [["all", f"{total:,}"], ["all, without scales and with 12 masks", f"{told:,}"]]
    print_table(title, ["term", "bytes"], rows)


def main() -> tuple[dict[str, int], dict[str, int]]:
    model = GPT2LMHeadModel(GPT2Config()).eval()
    before = terms(model)
    count = sum(p.numel() for p in model.parameters())
    show(f"GPT-2, {count:,} parameters in float32", before, mask_bytes(4))
    rquant.quantize(model, "int8", activations="int8", outliers=6.0, exclude="lm_head")
    rquant.freeze(model)
    model.half()
    after = terms(model)
    show("The same as LLM.int8(): 48 linear layers in int8, the rest in float16", after, mask_bytes(2))
    return before, after


if __name__ == "__main__":
    main()
