"""Write the golden files of the current format: one a scheme, and what its layers must compute.

    python tests/golden/make.py

Run once for each new format. The files of a format are never written anew: that they are still read is the test.
"""

import json
from pathlib import Path

import torch
from torch import nn

import rquant

HERE = Path(__file__).parent
SCHEMES = {
    "int8": {"weights": "int8"},
    "int8-affine": {"weights": "int8", "symmetric": False},
    "int8-group-affine": {"weights": "int8", "symmetric": False, "group_size": 16},
    "int4": {"weights": "int4"},
    "int4-group7": {"weights": "int4", "group_size": 7},
    "int4-symmetric": {"weights": "int4", "symmetric": True, "group_size": 32},
    "int4-channel-a8": {"weights": "int4", "group_size": -1, "activations": "int8"},
    "int4-wide-scales": {"weights": "int4"},
    "int4-float-zero": {"weights": "int4", "group_size": 8},
    "int2": {"weights": "int2"},
    "int2-symmetric-a8": {"weights": "int2", "symmetric": True, "group_size": 5, "activations": "int8"},
}


class Model(nn.Module):
    """A tied embedding, a layer of its own, a bfloat16 and a non-persistent buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = (
            nn.Embedding(12, 37),
            nn.Linear(37, 7),
            nn.Linear(37, 12, bias=False),
        )
        self.head.weight = self.embed.weight
        self.register_buffer("table", torch.linspace(0, 1, 5).bfloat16(), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Through all three weights."""
        x = self.embed(ids)
        return torch.cat([self.head(x), self.body(x)], -1)


def build(name: str) -> Model:
    """The float model of a golden file, its numbers by arithmetic that is exact everywhere."""
    model = Model()
    for i, parameter in enumerate(model.parameters()):
        steps = torch.arange(parameter.numel()) * 7919 % 1009
        parameter.data = ((steps.double() / 1009 - 0.45) * (1 + i)).float().reshape(parameter.shape)
    if name == "int4-wide-scales":
        model.body.weight.data[3] *= 2.0**40
    return model


def quantized(name: str) -> Model:
    """The model as it is saved."""
    model = build(name)
    rquant.quantize(model, **SCHEMES[name])
    rquant.freeze(model)
    if name != "int4-float-zero":
        return model
    state, qmap = model.state_dict(), rquant.quantization_map(model)
    for key in state:
        if key.endswith("zero_point"):
            state[key] = state[key].half() - 8 + 0.25
    for entry in qmap["modules"].values():
        entry["zero_point_dtype"] = "float16"
    return rquant.requantize(Model(), state, qmap)


def facts(model: Model) -> dict[str, object]:
    """What a reader must find: codes and floats of both weights, in JSON types that hold them exactly."""
    found = {}
    for layer in ("embed", "body"):
        module = getattr(model, layer)
        state = {key: tensor.to(torch.float64).tolist() for key, tensor in module.state_dict().items()}
        found[layer] = {**state, "dequantized": module.weight.dequantize().to(torch.float64).tolist()}
    found["table"] = model.table.to(torch.float64).tolist()
    return found


if __name__ == "__main__":
    for name in SCHEMES:
        path = HERE / f"format1-{name}.safetensors"
        if path.exists():
            raise SystemExit(f"{path} exists: golden files are written once")
        golden = quantized(name)
        rquant.save(golden, path)
        path.with_suffix(".json").write_text(json.dumps(facts(golden)))
