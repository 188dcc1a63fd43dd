"""The bits of a checkpoint quantized from file to file are those of `from_float`; weights that cannot be are named."""

import numpy as np
import pytest
import torch
from checkpoints import small, wish
from safetensors.torch import load_file, save_file
from torch import nn

import rquant
from rquant.casting import cast, widen
from rquant.qtypes import qbfloat16, qfloat16
from rquant.streaming import blocks, quantize_checkpoint

SCHEMES = [
    ("int8", None, None),
    ("int4", None, None),
    ("int4", 7, True),
    ("int2", 32, None),
    ("int8", 16, False),
    ("int4", 32, None, "absmax"),
    ("int4", None, True, "mse"),
    ("int8", None, None, "mse"),
    ("int2", None, None, "hqq"),
    ("int4", -1, None, "hqq"),
    ("float8", None, None),
    ("float8_e5m2", 16, None),
    ("float16", None, None),
    ("bfloat16", None, None),
]
KEPT = {
    "body.0.up.bias",
    "body.1.conv.weight",
    "embed_tokens.weight",
    "norm.weight",
    "gate.weight",
    "steps",
    "nothing.weight",
}


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight)
    return layer


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("block", [1, 700, blocks.BLOCK])
def test_the_bits_are_those_of_from_float(scheme, block, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", block)
    source = small()
    save_file(source, tmp_path / "a.safetensors")
    summary = quantize_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors", wish(*scheme))
    made = load_file(tmp_path / "b.safetensors")
    assert set(summary.kept) == KEPT
    for name, tensor in source.items():
        if name in KEPT:
            assert torch.equal(made.pop(name), tensor)
            continue
        weights, group_size, symmetric, *optimizer = scheme
        layer = rquant.Linear.from_float(linear(tensor), weights, None, group_size, symmetric, *optimizer)
        for part, want in layer.state_dict().items():
            got = made.pop(name.removesuffix("weight") + part)
            assert got.dtype == want.dtype
            assert torch.equal(got, want), (name, part)
    assert not made


@pytest.mark.parametrize(
    ("weights", "optimizer"), [("int4", "minmax"), ("int2", "hqq"), ("float16", "minmax")]
)
def test_a_transposed_weight_is_packed_as_its_transpose(weights, optimizer, tmp_path):
    weight = torch.randn(64, 30)
    save_file({"a.weight": weight}, tmp_path / "a.safetensors")
    how = wish(weights, optimizer=optimizer, transposed=("a",))
    quantize_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors", how)
    layer = rquant.Linear.from_float(linear(weight.T.contiguous()), weights, optimizer=optimizer)
    want = layer.state_dict()
    for name, tensor in load_file(tmp_path / "b.safetensors").items():
        assert torch.equal(tensor, want[name.removeprefix("a.")])


@pytest.mark.parametrize("weights", ["int4", "float8", "bfloat16"])
@pytest.mark.parametrize("transposed", [(), ("a",)])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_nan_is_named_with_file_and_index(value, transposed, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 900)
    weight = torch.randn(30, 40)
    weight[17, 5] = value
    save_file({"a.weight": weight}, tmp_path / "in.safetensors")
    with pytest.raises(ValueError, match=r"in.safetensors: a.weight: expected finite .* at \[17, 5\]"):
        quantize_checkpoint(
            tmp_path / "in.safetensors", tmp_path / "out.safetensors", wish(weights, transposed=transposed)
        )
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("transposed", [(), ("a",)])
def test_what_float16_cannot_hold_is_named(transposed, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 900)
    weight = torch.randn(30, 40)
    weight[17, 5] = -70000.0
    save_file({"a.weight": weight}, tmp_path / "in.safetensors")
    out, how = tmp_path / "out.safetensors", wish("float16", transposed=transposed)
    with pytest.raises(ValueError, match=r"a.weight: expected at most 65504 .* got -70000.0 at \[17, 5\]"):
        quantize_checkpoint(tmp_path / "in.safetensors", out, how)
    assert not out.exists()
    quantize_checkpoint(tmp_path / "in.safetensors", out, wish("bfloat16"))
    assert torch.equal(load_file(out)["a.weight_packed"], weight.bfloat16())


def test_casts_round_as_torch_does():
    """Every float16 and bfloat16, the halfway points between neighbours, and those beside them."""
    codes = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    for qtype, dtype in ((qfloat16, torch.float16), (qbfloat16, torch.bfloat16)):
        exact = codes.view(dtype).float()
        exact = exact[exact.isfinite() & (exact.abs() < exact[exact.isfinite()].max())]
        bits = exact.view(torch.int32)
        middle = (bits + (1 << 12 if dtype == torch.float16 else 1 << 15)).view(torch.float32)
        for near in (exact, middle, *((middle.view(torch.int32) + i).view(torch.float32) for i in (-1, 1))):
            made = widen(cast(near.numpy(), qtype))
            assert np.array_equal(made.view(np.uint32), near.to(dtype).float().numpy().view(np.uint32))
