"""Observers: what they count, that order and batches do not matter, what they refuse and how they are kept."""

import copy
import functools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rquant
from rquant import observers
from rquant.observers import CrossEntropy, Histogram, MinMax, MovingAverage, NotFinite, Observer

EACH = sorted(observers.METHODS)
SYMMETRIC = pytest.mark.parametrize("symmetric", [False, True])


def batches(count=5, seed=0):
    """Of growing range, some with zeros, of several dtypes and layouts."""
    g = torch.Generator().manual_seed(seed)
    layouts = [
        lambda x: x,
        torch.relu,
        lambda x: x.to(memory_format=torch.channels_last),
        torch.Tensor.bfloat16,
        lambda x: x.transpose(1, 2)[:, ::2],
        torch.Tensor.double,
    ]
    return [
        change(torch.randn(4, 3, 6, 10, generator=g) * 1.7**i) for i, change in enumerate(layouts[:count])
    ]


def seen(observer, tensors):
    for x in tensors:
        observer.update(x)
    return observer


def all_of(tensors):
    return np.concatenate([x.double().numpy().reshape(-1) for x in tensors])


def reference_counts(x, bins):
    """float64: the least power of two with which `2 * bins` bins reach from min to max and 0."""
    x = np.asarray(x, np.float64)
    lo, hi = -x.min(), x.max()
    width = 2.0**-126
    while sum(math.floor(end / width) + 1 for end in (lo, hi) if end > 0) > 2 * bins:
        width *= 2
    below = math.floor(lo / width) + 1 if lo > 0 else 0
    index = np.where(x < 0, below - 1 - np.floor(-x / width), below + np.floor(x / width)).astype(int)
    return np.bincount(index[x != 0], minlength=2 * bins), width, -below * width


@pytest.mark.parametrize("bins", [2, 100, 2048])
def test_a_histogram_counts_every_value_in_its_bin(bins):
    data = batches()
    histogram = seen(Histogram(bins), data)
    counts, width, first = reference_counts(all_of(data), bins)
    assert histogram.counts.tolist() == counts.tolist()
    edges = histogram.edges.numpy()
    assert (edges[0], edges[1] - edges[0], len(edges)) == (first, width, 2 * bins + 1)
    assert histogram.zeros == (all_of(data) == 0).sum()
    assert histogram.total == len(all_of(data))
    assert histogram.extent == (all_of(data).min(), all_of(data).max())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.integers(0, 40),
)
def test_growing_loses_no_value(values, cut):
    parts = [torch.tensor(part) for part in (values[:cut], values[cut:])]
    histogram = seen(Histogram(64), parts)
    counts, width, _ = reference_counts(values, 64)
    assert histogram.counts.tolist() == counts.tolist()
    assert histogram.zeros + histogram.counts.sum() == len(values)
    used = (histogram.counts > 0).nonzero().flatten()
    if width > 2.0**-126 and len(used):
        lo, hi = min(*values, 0.0), max(*values, 0.0)
        assert (hi - lo) / width >= 62  # the bins are as narrow as they can be


@pytest.mark.parametrize("method", EACH)
@SYMMETRIC
def test_merged_is_one_pass(method, symmetric):
    data = batches(6)
    make = observers.METHODS[method]
    if method == "cross_entropy":  # a random sample, but for as many rows as there are
        make = functools.partial(CrossEntropy, rows=1000)
    one, a, b = (seen(make(), part) for part in (data, data[:2], data[2:]))
    a.merge(b)
    assert a.range(symmetric=symmetric) == pytest.approx(one.range(symmetric=symmetric), rel=1e-12)
    empty = make()
    empty.merge(b)
    assert empty.range(symmetric=symmetric) == b.range(symmetric=symmetric)
    before = b.range(symmetric=symmetric)
    b.merge(observers.observer_of(method))
    assert b.range(symmetric=symmetric) == before


def test_merged_histograms_are_bit_identical_in_any_order():
    data = batches(6)
    want = seen(Histogram(), data).state_dict()
    for order in ((0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (3, 0, 5, 1, 4, 2)):
        merged = Histogram()
        for i in order:
            merged.merge(seen(Histogram(), [data[i]]))
        assert all(torch.equal(value, want[name]) for name, value in merged.state_dict().items())


@pytest.mark.parametrize("method", EACH)
def test_a_state_is_all_that_it_knows(method):
    first = seen(observers.observer_of(method), batches(4))
    again = observers.observer_of(method)
    again.load_state_dict(first.state_dict())
    for copied in (again, copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert copied.range() == first.range()
        assert isinstance(copied, Observer)
    more = batches(6)[5]
    assert seen(again, [more]).range(symmetric=True)[1] == -again.range(symmetric=True)[0]
    with pytest.raises(ValueError, match=r"state: expected|sample"):
        again.load_state_dict({"low": torch.zeros(())})


@pytest.mark.parametrize("method", EACH)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_value_is_named_and_nothing_of_it_kept(method, bad):
    observer = seen(observers.observer_of(method), batches(2))
    before = observer.range()
    x = torch.randn(8, 10) * 100
    x[3, 5] = bad
    x[7, 1] = math.nan
    for spoilt in (x, x.half(), x.bfloat16(), x.double(), x.T.contiguous().T):
        with pytest.raises(NotFinite, match=r"x: expected finite numbers, got NaN or infinity at \[3, 5\]"):
            observer.update(spoilt)
    assert observer.range() == before


@pytest.mark.parametrize("method", EACH)
@SYMMETRIC
@pytest.mark.parametrize(
    "x",
    [torch.zeros(3, 4), torch.full((3, 4), 5.0), torch.full((3, 4), -1e-42), torch.tensor([[3e38, -3e38]])],
    ids=["zero", "constant", "denormal", "huge"],
)
def test_no_data_divide_by_zero(method, symmetric, x):
    lo, hi = seen(observers.observer_of(method), [x, torch.empty(0, x.shape[1])]).range(symmetric=symmetric)
    assert isinstance(lo, float)
    assert math.isfinite(lo)
    assert math.isfinite(hi)
    assert lo <= 0 <= hi
    assert not symmetric or lo == -hi


@pytest.mark.parametrize("method", EACH)
def test_without_values_there_is_no_range(method):
    with pytest.raises(ValueError, match="expected an observer that has seen values"):
        observers.observer_of(method).range()
    with pytest.raises(ValueError, match=r"x: expected a tensor of floats, got torch\.int64"):
        observers.observer_of(method).update(torch.ones(2, 2).long())
    with pytest.raises(ValueError, match="qtype: expected one of"):
        seen(observers.observer_of(method), batches(1)).range(rquant.qfloat8)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Histogram(1), "bins"),
        (lambda: observers.Percentile(0), "p"),
        (lambda: observers.Percentile(101), "p"),
        (lambda: MovingAverage(1.5), "momentum"),
        (lambda: MovingAverage(math.nan), "momentum"),
        (lambda: CrossEntropy(0), "rows"),
        (lambda: observers.observer_of("max"), "method"),
        (lambda: observers.observer_of(MinMax()), "method"),
        (lambda: observers.observer_of(dict), "method"),
        (lambda: Histogram(8).merge(Histogram(9)), "other"),
        (lambda: MovingAverage(0.5).merge(MovingAverage()), "other"),
        (lambda: Histogram(8).load_state_dict(Histogram(9).state_dict()), "counts"),
    ],
)
def test_arguments_are_named(make, argument):
    with pytest.raises(ValueError, match=rf"^{argument}: expected"):
        make()


def test_anybody_s_observer_is_one():
    class Fixed:
        def update(self, x): ...
        def range(self, qtype=rquant.qint8, symmetric=False):
            return -1.0, 1.0

        def merge(self, other): ...
        def state_dict(self):
            return {}

        def load_state_dict(self, state): ...

    assert isinstance(observers.observer_of(Fixed), Fixed)
