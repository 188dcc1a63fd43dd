"""A quantized model as its state dict and a map in JSON types; back onto a float skeleton."""

import base64
from typing import Any

import torch
from torch import Tensor, nn

from .. import _rquant
from ..io.configuration import FORMAT
from ..io.safetensors_file import DTYPES, dtype_name
from .modelmap import Config, Source, describe, is_persistent, named_tensors, rebuild

LARGEST_IN_MAP = 64 * 1024


def quantization_map(model: nn.Module) -> Config:
    """All that a float skeleton and `model.state_dict()` lack to be the model again, in JSON types.

    Non-persistent buffers are in it. Raises ValueError, naming it, for one larger than 64 KiB: use `save` then.
    """
    buffers = {}
    for name, tensor, owner in named_tensors(model):
        if is_persistent(name, owner):
            continue
        if tensor.nbytes > LARGEST_IN_MAP:
            raise ValueError(
                f"{name}: expected a non-persistent buffer of at most {LARGEST_IN_MAP} bytes, got {tensor.nbytes}; "
                "rquant.save keeps it as a tensor"
            )
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        dtype, shape = dtype_name(tensor.dtype), list(tensor.shape)
        buffers[name] = {"dtype": dtype, "shape": shape, "base64": base64.b64encode(raw).decode()}
    return {"format": FORMAT, "rquant": _rquant.__version__, **describe(model), "buffers": buffers}


def requantize(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    quantization_map: Config,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Make `model`, a float skeleton, the model that `state_dict` and the map were taken from; bit-identical. Returns it.

    Layers whose `weight_packed` is in the state dict come frozen, others trainable. Raises ValueError, naming the tensor,
    for what is missing, left over or of a wrong shape; the skeleton is then not to be used.
    """
    version = quantization_map.get("format")
    if version != FORMAT:
        raise ValueError(f"quantization_map: expected format {FORMAT}, got {version!r}")
    tensors = dict(state_dict)
    for name, entry in quantization_map["buffers"].items():
        tensors[name] = _buffer(name, entry)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    chosen = None if device is None else torch.device(device)
    rebuild(
        model,
        quantization_map,
        Source(shapes, lambda name: tensors[name].detach(), "state_dict: ", chosen),
    )
    return model


def _buffer(name: str, entry: dict[str, Any]) -> Tensor:
    try:
        raw = bytearray(base64.b64decode(entry["base64"], validate=True))
        dtype = DTYPES[entry["dtype"]]
        flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        return flat.reshape(entry["shape"])
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"quantization_map: buffer {name!r} is damaged ({error})") from None
