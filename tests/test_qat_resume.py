"""Training that was stopped goes on from its state dict, to the last bit."""

import io
import pickle

import pytest
import torch
from test_qat import block
from torch.nn import functional

from rquant import qat

WAYS = {
    "learned": {},
    "moving average": {"activations": "observed"},
    "histogram": {"activations": "observed", "observer": "percentile"},
    "rounded": {"weights": "rounded", "activations": "fixed"},
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prepared(way, factor=1.0):
    model = block(factor * torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    qat.prepare(model, **WAYS[way])
    return model, torch.optim.Adam(model.parameters(), 0.01)


def steps(model, optimizer, first, last):
    model.train()
    for step in range(first, last):
        x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(100 + step))
        optimizer.zero_grad()
        functional.cross_entropy(model(x), torch.arange(16) % 5).backward()
        optimizer.step()


def resumed(way, model, optimizer):
    """Another one, calibrated on other pictures, with the state that was written."""
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    state, steps_state = torch.load(file, weights_only=True)
    other, other_optimizer = prepared(way, 3.0)
    other.load_state_dict(state)
    other_optimizer.load_state_dict(steps_state)
    return other, other_optimizer


def assert_same(model, other):
    state = other.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert [name for name, t in model.state_dict().items() if not torch.equal(t, state[name])] == []


@pytest.mark.parametrize("way", WAYS)
def test_half_and_half_is_the_whole(way):
    whole, half = prepared(way), prepared(way)
    steps(*whole, 0, 8)
    steps(*half, 0, 4)
    other = resumed(way, *half)
    steps(*other, 4, 8)
    assert_same(whole[0], other[0])


@pytest.mark.parametrize("way", ["moving average", "histogram"])
def test_a_pickle_goes_on_too(way):
    model, optimizer = prepared(way)
    steps(model, optimizer, 0, 1)
    other = pickle.loads(pickle.dumps(model))
    for one in (model, other):
        steps(one, torch.optim.SGD(one.parameters(), 0.01), 1, 3)
    assert_same(model, other)


def test_what_was_frozen_stays_so():
    way = "moving average"
    whole = prepared(way)
    steps(*whole, 0, 2)
    qat.freeze_observers(whole[0])
    qat.freeze_bn_stats(whole[0])
    other = resumed(way, *whole)
    assert other[0].first.input_range.frozen
    assert not other[0].second.batch_norm.live
    for one in (whole, other):
        steps(*one, 2, 4)
    assert_same(whole[0], other[0])
    fresh = prepared(way)[0]
    other[0].load_state_dict(fresh.state_dict())
    assert not other[0].first.input_range.frozen
    assert other[0].second.batch_norm.live


def test_a_copy_shares_nothing_with_the_state_it_came_of():
    for way in ("moving average", "histogram"):
        model = prepared(way)
        other = prepared(way)
        other[0].load_state_dict(model[0].state_dict())
        kept = {name: tensor.clone() for name, tensor in model[0].state_dict().items()}
        steps(*other, 0, 1)
        assert all(torch.equal(tensor, kept[name]) for name, tensor in model[0].state_dict().items())


def test_state_dicts_without_the_observer_load_as_they_did():
    model, _ = prepared("moving average")
    steps(*prepared("moving average"), 0, 2)
    state = model.state_dict()
    old = {name: t for name, t in state.items() if ".observer." not in name and "frozen" not in name}
    old = {name: t for name, t in old.items() if not name.endswith(".symmetric")}
    assert len(old) < len(state)
    other, _ = prepared("moving average", 3.0)
    other.load_state_dict(old)
    assert torch.equal(other.first.input_range.scale, model.first.input_range.scale)
    lo, hi = other.first.input_range.observer.range()
    zero, scale = other.first.input_range.zero_point.item(), other.first.input_range.scale.item()
    assert (lo, hi) == pytest.approx(((-127 - zero) * scale, (127 - zero) * scale))


def test_another_observer_s_state_is_refused_by_name():
    model, other = prepared("moving average")[0], prepared("histogram")[0]
    with pytest.raises(RuntimeError, match=r"first\.input_range\.observer: state: expected .* of Percentile"):
        other.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*first\.input_range\.other"):
        model.load_state_dict({**model.state_dict(), "first.input_range.other": torch.ones(1)})
