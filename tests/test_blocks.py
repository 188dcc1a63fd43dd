"""`group_size=(r, c)`: one scale for r rows and c columns, in tensors, layers and files."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rquant
from rquant.scheme import Scheme


def blocks_of(x, rows, columns):
    """Where each block is."""
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            yield slice(i, i + rows), slice(j, j + columns), j // columns


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 40), st.integers(2, 5), st.sampled_from((1, 3, 8, 16)),
    st.sampled_from(("int8", "int4", "int2")), st.booleans(), st.sampled_from(("minmax", "absmax", "mse")), st.integers(0, 99),
)  # fmt: skip
def test_each_block_is_a_tensor_of_its_own(n, k, rows, columns, qtype, symmetric, range, seed):
    x = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    q = rquant.quantize_tensor(x, qtype, symmetric=symmetric, group_size=(rows, columns), range=range)
    assert q.scale.shape == (n, -(-k // columns))
    for r, c, group in blocks_of(x, rows, columns):
        assert len(set(q.scale[r, group].tolist())) == len(set(q.zero_point[r, group].tolist())) == 1
        alone = rquant.quantize_tensor(
            x[r, c].reshape(1, -1), qtype, symmetric=symmetric, group_size=x[r, c].numel(), range=range
        )
        if q.scale.dtype == alone.scale.dtype:  # float32 for all where one block's scale is beyond float16
            torch.testing.assert_close(q.scale[r, group][:1], alone.scale[0], rtol=0, atol=0)
            assert torch.equal(q.int_repr()[r, c].flatten(), alone.int_repr().flatten())


def test_all_columns_of_some_rows():
    x = torch.randn(6, 10)
    q = rquant.quantize_tensor(x, "int8", group_size=(3, -1))
    assert q.scale.dtype == torch.float32
    torch.testing.assert_close(q.scale[::3, 0], x.reshape(2, 30).abs().amax(1) / 127)
    same = rquant.quantize_tensor(x, "int4", group_size=(1, 5))
    assert torch.equal(same.int_repr(), rquant.quantize_tensor(x, "int4", group_size=5).int_repr())


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("optimizer", ["minmax", "mse", "hqq"])
def test_layers_and_files(activations, optimizer, tmp_path):
    torch.manual_seed(0)

    def build():
        return nn.Sequential(nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 6))

    model, x = build(), torch.randn(4, 48)
    report = rquant.quantize(model, "int4", activations, group_size=(4, 16), optimizer=optimizer)
    assert "block 4 x 16" in report.quantized[0].scheme
    model.train()
    model(x).square().sum().backward()
    assert model[0].weight.grad.abs().max() > 0
    want = model.eval()(x)
    described = rquant.quantization_map(model)
    rquant.freeze(model)
    assert torch.equal(model(x), want)
    assert model.state_dict()["0.weight_scale"].unflatten(0, (-1, 4)).std(1).max() == 0
    rquant.save(model, tmp_path / "m.safetensors")
    with torch.device("meta"):
        skeleton = build()
    again = rquant.load(tmp_path / "m.safetensors", skeleton)
    assert torch.equal(again(x), want)
    assert again[0].scheme == model[0].scheme
    assert json.loads(json.dumps(described)) == described


def test_convolutions_by_a_rule():
    model, x = (
        nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 1)).eval(),
        torch.randn(2, 8, 6, 6),
    )
    want = model(x)
    rules = [["0", {"weights": "int8", "group_size": [3, 24]}]]  # as JSON has it
    rquant.quantize(model, "int8", activations="int8", rules=rules)
    rquant.calibrate(model, [x])
    unfrozen = model(x)
    rquant.freeze(model)
    assert torch.equal(model(x), unfrozen)
    assert model[0].state_dict()["weight_scale"].shape == (12, 3)
    torch.testing.assert_close(model(x), want, rtol=0, atol=0.05 * want.abs().max().item())


@pytest.mark.parametrize("wrong", [(0, 4), (2, 0), (2, -2), (2, 3, 4), (2.0, 4), "2x4", (True, 4)])
def test_what_is_no_block_is_named(wrong):
    with pytest.raises(ValueError, match=r"group_size: expected .* a block's \(rows, columns\), got"):
        Scheme.resolve("int8", wrong)


def test_float8_has_none():
    with pytest.raises(ValueError, match=r"group_size: expected None, -1 or an int for qfloat8_e4m3fn"):
        rquant.quantize_tensor(torch.ones(4, 4), "float8", group_size=(2, 2))
