"""Histograms against numpy's, `simulate_` against the tensor functions, and pictures that are pictures."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rquant
from rquant.viz import Bars, draw_bars, draw_histograms, histogram, png


@given(
    values=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=60),
    bins=st.integers(1, 9),
    ends=st.sampled_from([(-2.0, 2.0), (0.0, 1.0), (-3.0, 0.5)]),
)
def test_counts_are_numpys(values, bins, ends):
    x = torch.tensor(values)
    counts, edges = np.histogram(x.double().numpy(), bins, ends)
    found = histogram([x[: len(x) // 2], x[len(x) // 2 :].reshape(-1, 1)], bins, ends)
    np.testing.assert_allclose(found.edges.numpy(), edges, atol=1e-12)
    # a value within rounding of an edge may fall on either side
    near = sum(min(abs(v - e) for e in edges) < 1e-9 for v in values)
    assert (found.counts - torch.from_numpy(counts)).abs().sum() <= 2 * near
    assert found.outside == len(values) - int(found.counts.sum())
    assert (found.least, found.most) == (x.min().item(), x.max().item())
    assert found.mean == pytest.approx(x.double().mean().item(), abs=1e-9)
    assert found.std == pytest.approx(x.double().std(correction=0).item(), abs=1e-6)
    assert found.zeros == values.count(0.0)


def test_a_histogram_in_json_and_in_words():
    found = histogram(torch.tensor([-5.0, 0.0, 0.0, 0.1, 1.0]), 4, (-1, 1))
    told = json.loads(json.dumps(found.to_dict()))
    assert told["counts"] == [0, 0, 3, 1]
    assert (told["count"], told["outside"], told["zeros"]) == (5, 1, 2)
    assert "5 values in [-5, 1]" in str(found)
    assert "40.00% are 0, 60.00% in the fullest of 4 bins" in str(found)


def test_rounding_leaves_gaps():
    torch.manual_seed(0)
    x = torch.randn(20_000) * 0.4
    before, after = histogram(x), histogram(rquant.quantize_tensor(x, "int4", axis=None).dequantize())
    assert before.empty < 0.2  # the tails
    assert after.empty > 0.8
    assert before.overlap(before) == pytest.approx(1)
    assert after.overlap(before) < 0.5
    with pytest.raises(ValueError, match="other: expected a histogram over the same bins"):
        before.overlap(histogram(x, 10))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: histogram([]), "x: expected at least one value"),
        (lambda: histogram(torch.tensor([math.nan])), "x: expected finite numbers"),
        (lambda: histogram(torch.ones(1), 0), "bins: expected an int >= 1, got 0"),
        (lambda: histogram(torch.ones(1), range=(1, 1)), "range: expected"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Everything(nn.Module):
    """A tied embedding, a norm, a convolution, biases, an empty parameter."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.norm = nn.LayerNorm(6)
        self.conv = nn.Conv2d(2, 3, 2)
        self.head = nn.Linear(6, 7)
        self.head.weight = self.embed.weight
        self.none = nn.Parameter(torch.empty(0))


TEXTBOOK = {"absmax": rquant.absmax_quantize, "zeropoint": rquant.zeropoint_quantize}


@pytest.mark.parametrize("scheme", TEXTBOOK)
def test_simulate_takes_every_parameter(scheme):
    torch.manual_seed(0)
    model = Everything()
    for p in model.parameters():
        nn.init.normal_(p)
    rounded = rquant.simulate_(copy.deepcopy(model), scheme)
    assert rounded.head.weight is rounded.embed.weight
    for before, after in zip(model.parameters(), rounded.parameters(), strict=True):
        assert torch.equal(after, TEXTBOOK[scheme](before)[1] if before.numel() else before)
        assert after.requires_grad
    assert not torch.equal(model.norm.bias, rounded.norm.bias)


def test_simulate_by_type_is_quantize():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 12), nn.Linear(12, 4))
    fake, real = rquant.simulate_(copy.deepcopy(model), "int4", group_size=8), copy.deepcopy(model)
    rquant.quantize(real, "int4", group_size=8)
    for i in (0, 1):
        assert torch.equal(fake[i].weight, real[i].dequantize())
        bias = rquant.quantize_tensor(model[i].bias[None], "int4", group_size=8).dequantize()[0]
        assert torch.equal(fake[i].bias, bias)


def test_simulate_changes_nothing_where_it_fails():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].bias.data[2] = math.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"1\.bias: expected finite numbers, got NaN or infinity at \[2\]"):
        rquant.simulate_(model, "absmax")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items() if k != "1.bias")
    with pytest.raises(ValueError, match="weights: expected one of"):
        rquant.simulate_(model, "int3")
    with pytest.raises(ValueError, match="group_size, symmetric: expected None with 'absmax'"):
        rquant.simulate_(model, "absmax", group_size=4)


def test_pictures_are_pngs():
    pytest.importorskip("matplotlib")
    h = histogram(torch.randn(100))
    for figure in (
        draw_histograms(h, {"absmax": h, "zeropoint": h}),
        draw_bars(
            [Bars("ms", {"float": 2.0, "int8": 1.0}), Bars("perplexity", {"a": 3.0, "b": 3e5}, log=True)]
        ),
    ):
        image = png(figure)
        assert image.startswith(b"\x89PNG")
        assert len(image) > 5000


def test_without_matplotlib_one_line_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'rquant\[viz\]'"):
        draw_bars([Bars("ms", {"float": 2.0})])
