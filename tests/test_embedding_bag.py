"""Quantized bags are torch's bags of the rounded rows."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rquant

ROWS, DIM = 11, 24


def rounded(bag):
    bag = copy.deepcopy(bag)
    bag.weight.data = rquant.quantize_tensor(bag.weight.data, "int4", axis=0, group_size=8).dequantize()
    return bag


def quantized(bag, freeze=True):
    model = nn.ModuleList([copy.deepcopy(bag)])
    rquant.quantize(model, "int4", include="*", group_size=8)
    if freeze:
        rquant.freeze(model)
    return model[0]


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["sum", "mean", "max"]),
    padding_idx=st.sampled_from([None, 0, 3, -1]),
    ends=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    flat=st.booleans(),
    last=st.booleans(),
    weighted=st.booleans(),
    freeze=st.booleans(),
    dtype=st.sampled_from([torch.int64, torch.int32]),
    seed=st.integers(0, 99),
)
def test_it_computes_as_torch_does(mode, padding_idx, ends, flat, last, weighted, freeze, dtype, seed):
    torch.manual_seed(seed)
    bag = nn.EmbeddingBag(ROWS, DIM, mode=mode, padding_idx=padding_idx, include_last_offset=flat and last)
    ids = torch.randint(0, ROWS, (12,) if flat else (4, 3), dtype=dtype)
    offsets = torch.tensor([0, *sorted(ends)], dtype=dtype) if flat else None
    weights = torch.randn(ids.shape) if weighted and mode == "sum" else None
    layer = quantized(bag, freeze)
    assert type(layer) is rquant.nn.EmbeddingBag
    got = layer(ids, offsets, weights)
    torch.testing.assert_close(got, rounded(bag)(ids, offsets, weights), rtol=0, atol=1e-6)


def test_gradients_reach_rows_before_and_sample_weights_after_freezing():
    layer, ids = quantized(nn.EmbeddingBag(ROWS, DIM, mode="sum"), freeze=False), torch.tensor([[1, 2, 2]])
    layer(ids).sum().backward()
    assert torch.equal(layer.weight.grad.sum(1) != 0, torch.isin(torch.arange(ROWS), ids))
    layer.freeze()
    weights = torch.ones(1, 3, requires_grad=True)
    layer(ids, None, weights).sum().backward()
    torch.testing.assert_close(weights.grad[0], layer.dequantize()[ids[0]].sum(1))


def test_it_is_chosen_by_name_only_and_comes_back(tmp_path):
    model = nn.Sequential(nn.EmbeddingBag(ROWS, 64), nn.Linear(64, 4))
    assert rquant.quantize(model).floating[0].note == "EmbeddingBag: by include, or when tied"
    model = nn.Sequential(nn.EmbeddingBag(ROWS, 64, mode="max", padding_idx=2), nn.Linear(64, 4))
    skeleton, ids = copy.deepcopy(model), torch.randint(0, ROWS, (3, 5))
    rquant.quantize(model, rules=[(nn.EmbeddingBag, "int8")])
    rquant.freeze(model)
    rquant.save(model, tmp_path / "m.safetensors")
    qmap = json.loads(json.dumps(rquant.quantization_map(model)))
    assert torch.equal(rquant.load(tmp_path / "m.safetensors", copy.deepcopy(skeleton))(ids), model(ids))
    assert torch.equal(rquant.requantize(skeleton, model.state_dict(), qmap)(ids), model(ids))


def test_max_norm_stays_float_and_is_refused():
    bag = nn.EmbeddingBag(ROWS, DIM, max_norm=1.0)
    report = rquant.quantize(nn.ModuleList([bag, nn.Linear(3, 3)]))
    assert report.floating[0].note == "max_norm rewrites its weight"
    with pytest.raises(ValueError, match=r"max_norm None, got 1.0"):
        rquant.nn.EmbeddingBag.from_float(bag)
    with pytest.raises(TypeError, match=r"nn.EmbeddingBag, got Linear"):
        rquant.nn.EmbeddingBag.from_float(nn.Linear(3, 3))
