"""Ranges against plain float64 references, and the promises of the searches as properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rquant.observers import MSE, CrossEntropy, Entropy, Histogram, MinMax, MovingAverage, Percentile

SYMMETRIC = pytest.mark.parametrize("symmetric", [False, True])
BITS = {"int2": 1, "int4": 7, "int8": 127}


def sample(kind, n=40_000, seed=0):
    g = np.random.default_rng(seed)
    if kind == "normal":
        return g.normal(0.3, 1.0, n).astype(np.float32)
    if kind == "relu":
        return np.maximum(g.normal(0, 1.0, n), 0).astype(np.float32)
    if kind == "laplace":
        return g.laplace(0, 1.0, n).astype(np.float32)
    x = g.normal(0, 1.0, n)
    x[:8] = 30.0  # a few outliers, on one side
    return x.astype(np.float32)


KINDS = pytest.mark.parametrize("kind", ["normal", "relu", "laplace", "outliers"])


def seen(observer, x):
    for part in np.array_split(x, 7):
        observer.update(torch.from_numpy(part))
    return observer


def whole(x, symmetric):
    lo, hi = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    return (-max(-lo, hi), max(-lo, hi)) if symmetric else (lo, hi)


def rounded(x, range, qmax, symmetric):
    """What codes from -qmax to qmax stand for, in float64 but for the scale, which is stored as float32."""
    lo, hi = range
    scale = float(np.float32(hi / qmax if symmetric else (hi - lo) / (2 * qmax)))
    zero = 0 if symmetric else np.clip(np.round(-qmax - lo / scale), -qmax, qmax)
    return (np.clip(np.round(x / scale) + zero, -qmax, qmax) - zero) * scale


def squares(x, range, qmax, symmetric):
    x = x.astype(np.float64)
    return np.mean((x - rounded(x, range, qmax, symmetric)) ** 2)


@SYMMETRIC
def test_min_max_and_moving_average(symmetric):
    g = np.random.default_rng(1)
    data = [g.normal(i - 2, i + 1, (4, 5)).astype(np.float32) for i in range(6)]
    ends, average, recent = MinMax(), MovingAverage(0.9), MovingAverage(0.0)
    lo = hi = None
    for x in data:
        for observer in (ends, average, recent):
            observer.update(torch.from_numpy(x))
        least, most = np.float64(x.min()), np.float64(x.max())
        lo, hi = (least, most) if lo is None else (0.9 * lo + 0.1 * least, 0.9 * hi + 0.1 * most)
    every = np.concatenate(data)
    assert ends.range(symmetric=symmetric) == whole(every, symmetric)
    assert average.range(symmetric=symmetric) == pytest.approx(whole(np.array([lo, hi]), symmetric))
    assert recent.range(symmetric=symmetric) == whole(data[-1], symmetric)


@KINDS
@SYMMETRIC
@pytest.mark.parametrize("p", [100, 99.9, 95, 60])
def test_percentiles(kind, symmetric, p):
    x = sample(kind)
    observer = seen(Percentile(p), x)
    width = (observer.edges[1] - observer.edges[0]).item()
    lo, hi = observer.range(symmetric=symmetric)
    x = x.astype(np.float64)
    few = 1.5 / len(x)  # between two values, any place is right

    def near(end, values, share):
        least, most = (np.quantile(values, np.clip(share + d, 0, 1)) for d in (-few, few))
        return max(least, 0) - width <= end <= max(most, 0) + width

    if symmetric:
        assert lo == -hi
        assert near(hi, np.abs(x), p / 100)
    else:
        rest = (1 - p / 100) / 2
        assert near(hi, x, 1 - rest)
        assert near(-lo, -x, 1 - rest)
        assert kind != "outliers" or p == 100 or hi < 10  # 0.05 % are 20 values, 8 of which are far out


@KINDS
@SYMMETRIC
@pytest.mark.parametrize("qtype", BITS)
def test_least_squares_is_nearly_the_best_of_a_fine_grid(kind, symmetric, qtype):
    x, qmax = sample(kind), BITS[qtype]
    observer = seen(MSE(), x)
    found = observer.range(qtype, symmetric)
    got = squares(x, found, qmax, symmetric)
    full = whole(x, symmetric)
    assert got <= squares(x, full, qmax, symmetric)
    assert observer.mean_squared_error(found, qtype, symmetric) == pytest.approx(got, rel=0.02)
    parts = np.geomspace(1, 0.02, 150)
    ends = [(full[0] * part, full[1] * part) for part in parts]
    best = min(squares(x, range, qmax, symmetric) for range in ends)
    assert got <= 1.02 * best


@KINDS
def test_affine_least_squares_moves_each_end(kind):
    x = sample(kind)
    lo, hi = seen(MSE(), x).range("int4")
    error = squares(x, (lo, hi), 7, False)
    for other in ((lo * 0.8, hi), (lo * 1.25, hi), (lo, hi * 0.8), (lo, hi * 1.25)):
        assert error <= squares(x, other, 7, False) * 1.01


def divergence(x, range, qmax, symmetric, bins, width, first):
    """KL(P‖Q) by its definition, one bin after the other."""
    lo, hi = range
    scale = float(np.float32(hi / qmax if symmetric else (hi - lo) / (2 * qmax)))
    zero = 0 if symmetric else np.clip(np.round(-qmax - lo / scale), -qmax, qmax)
    zeros = float((x == 0).sum())
    p, code = [], []
    below = above = 0.0
    for i, count in enumerate(bins):
        if not count:
            continue
        start, end = max(first + i * width, min(x.min(), 0)), min(first + (i + 1) * width, max(x.max(), 0))
        q = round((start + end) / 2 / scale)
        if q < -qmax - zero:
            below += count
        elif q > qmax - zero:
            above += count
        else:
            p.append(float(count))
            code.append(q)
    q = [sum(c for c, o in zip(p, code, strict=True) if o == own) / code.count(own) for own in code]
    kept, total = sum(p) + zeros, sum(p) + zeros + below + above
    p[0] += below
    p[-1] += above
    pairs = [(zeros, zeros), *zip(p, q, strict=True)]
    return sum(a / total * math.log(a / total / (b / kept)) for a, b in pairs if a)


@KINDS
@SYMMETRIC
def test_kl_divergence_is_its_definition(kind, symmetric):
    x = sample(kind, 3000).astype(np.float64)
    observer = seen(Entropy(bins=300), x.astype(np.float32))
    edges = observer.edges.numpy()
    grid = observer.counts.tolist(), edges[1] - edges[0], edges[0]
    full = whole(x, symmetric)
    found = observer.range("int4", symmetric)
    for range in (full, found, (full[0] * 0.37, full[1] * 0.37)):
        want = divergence(x, range, 7, symmetric, *grid)
        assert observer.kl_divergence(range, "int4", symmetric) == pytest.approx(want, rel=1e-9, abs=1e-12)


@KINDS
@SYMMETRIC
def test_entropy_is_nearly_the_best_of_a_fine_grid(kind, symmetric):
    x = sample(kind)
    observer = seen(Entropy(), x)
    full = whole(x, symmetric)

    def cost(part):
        return observer.kl_divergence((full[0] * part, full[1] * part), symmetric=symmetric)

    found = observer.kl_divergence(observer.range(symmetric=symmetric), symmetric=symmetric)
    assert found <= cost(1.0)
    assert found <= 1.1 * min(map(cost, np.geomspace(1, 0.15, 60)))


VALUES = st.lists(
    st.one_of(st.floats(-4, 4, width=32), st.sampled_from([0.0, 1.0, 50.0, -300.0])), min_size=1, max_size=80
)


@settings(max_examples=80, deadline=None)
@given(VALUES, st.booleans(), st.sampled_from(sorted(BITS)))
def test_no_search_ends_worse_than_the_whole_range(values, symmetric, qtype):
    x = np.array(values, np.float32)
    histogram = seen(Histogram(), x)
    full = histogram.range(qtype, symmetric)
    for search, cost in (
        (histogram.mse, histogram.mean_squared_error),
        (histogram.entropy, histogram.kl_divergence),
    ):
        found = search(qtype, symmetric)
        assert full[0] <= found[0] <= 0 <= found[1] <= full[1]
        assert cost(found, qtype, symmetric) <= cost(full, qtype, symmetric)


def cross_entropy(v, range, qmax, symmetric):
    v = v.astype(np.float64)

    def log_softmax(v):
        v = v - v.max(-1, keepdims=True)
        return v - np.log(np.exp(v).sum(-1, keepdims=True))

    w = rounded(v, range, qmax, symmetric)
    return -(np.exp(log_softmax(v)) * log_softmax(w)).sum(-1).mean()


@SYMMETRIC
@pytest.mark.parametrize("qtype", BITS)
@pytest.mark.parametrize("seed", range(3))
def test_cross_entropy(symmetric, qtype, seed):
    """Logits of which most are far below the largest: those may go, and more of the largest keep their place."""
    g = np.random.default_rng(seed)
    v = (g.normal(0, 1, (60, 100)) * 4 - 30 * (g.random((60, 100)) < 0.8)).astype(np.float32)
    qmax = BITS[qtype]
    observer = seen(CrossEntropy(), v)
    found, full = observer.range(qtype, symmetric), whole(v, symmetric)
    got, before = (cross_entropy(v, range, qmax, symmetric) for range in (found, full))
    assert got <= before * (1 + 1e-6)
    ends = [(full[0] * part, full[1] * part) for part in np.geomspace(1, 0.05, 40)]
    assert got <= 1.03 * min(cross_entropy(v, range, qmax, symmetric) for range in ends)
    kept, kept_before = (
        (rounded(v, range, qmax, symmetric).argmax(-1) == v.argmax(-1)).mean() for range in (found, full)
    )
    assert kept >= kept_before
    if qtype == "int4" and not symmetric:
        assert got < 0.9 * before


@settings(max_examples=25, deadline=None)
@given(VALUES, st.booleans(), st.sampled_from(sorted(BITS)))
def test_cross_entropy_is_never_worse(values, symmetric, qtype):
    v = np.array(values, np.float32)[None]
    observer = CrossEntropy()
    observer.update(torch.from_numpy(v))
    found, full = observer.range(qtype, symmetric), whole(v, symmetric)
    if full[0] < full[1]:
        costs = [cross_entropy(v, range, BITS[qtype], symmetric) for range in (found, full)]
        assert costs[0] <= costs[1] * (1 + 1e-5) + 1e-6


def test_its_sample_is_bounded_and_uniform():
    observer = CrossEntropy(rows=50)
    for i in range(40):
        observer.update(torch.full((30, 7), float(i)))
    rows = observer.state_dict()["sample"]
    assert rows.shape == (50, 7)
    assert 12 < rows[:, 0].mean() < 27
    assert observer.range() == (0.0, 39.0)
    wide = CrossEntropy()
    wide.update(torch.zeros(20, 1 << 16))
    assert len(wide.state_dict()["sample"]) == 4
    with pytest.raises(ValueError, match=r"x: expected rows of 65536 values, got shape \(2, 3\)"):
        wide.update(torch.zeros(2, 3))


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("make", [MSE, CrossEntropy])
def test_an_outlier_on_one_side_does_not_clip_the_other(side, make):
    g = np.random.default_rng(0)
    x = g.uniform(-1, 1, 100_000).astype(np.float32).reshape(-1, 100)
    x[3, 7] = 30.0 * side
    observer = make() if make is MSE else make(rows=1000)
    observer.update(torch.from_numpy(x))
    ends = sorted(abs(end) for end in observer.range("int4"))
    assert ends[0] > 0.7
    assert ends[1] < 10 or make is CrossEntropy
