"""What torch wraps around a model in training: copies that average, processes that share buffers, autocast, parameter groups."""

import copy

import pytest
import torch
from test_qat import block, train
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import rquant
from rquant import qat

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TARGET = torch.arange(16) % 5


def prepared(**how):
    model = block(X)
    qat.prepare(model, **how)
    return model


def assert_freezes_to_itself(model, autocast=None):
    with torch.no_grad(), torch.autocast("cpu", autocast, enabled=autocast is not None):
        want = model.eval()(X)
        rquant.freeze(model)
        assert torch.equal(model(X), want)


def test_observed_scales_stay_the_same_tensors():
    """DistributedDataParallel asks for buffers once, and gives those of the first process to all before each forward."""
    model = prepared(activations="observed")
    buffers, before = dict(model.named_buffers()), copy.deepcopy(dict(model.named_buffers()))
    train(model, 2 * X, 2)
    assert all(tensor is buffers[name] for name, tensor in model.named_buffers())
    assert not torch.equal(model.first.input_range.scale, before["first.input_range.scale"])


@pytest.mark.parametrize("activations", ["learned", "observed"])
def test_two_batches_before_the_backward_pass(activations):
    """Each is clipped by the scale it was rounded with."""
    one, two = (prepared(activations=activations) for _ in range(2))
    for model in (one, two):
        qat.freeze_bn_stats(model.train())
    losses = [functional.cross_entropy(two(factor * X), TARGET) for factor in (1.0, 3.0)]
    sum(losses).backward()
    for factor in (1.0, 3.0):
        functional.cross_entropy(one(factor * X), TARGET).backward()
    for got, want in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("activations", ["learned", "observed"])
def test_an_average_of_models(activations):
    model = prepared(activations=activations)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for _ in range(3):
        train(model, X, 1)
        average.update_parameters(model)
    update_bn([X], average)
    assert not torch.equal(average.eval()(X), model.eval()(X))
    zeros = (one.first.input_range.zero_point for one in (average.module, model))
    assert activations == "observed" or torch.equal(*zeros)
    assert_freezes_to_itself(average.module)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activations", ["learned", "observed"])
def test_autocast(dtype, activations):
    model = prepared(activations=activations)
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.01), []
    for _ in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = functional.cross_entropy(model.train()(X), TARGET)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert_freezes_to_itself(model, dtype)


def test_scales_in_a_group_of_their_own():
    model = block(X)
    scales = qat.prepare(model)
    own = {id(scale) for scale in scales}
    rest = [p for p in model.parameters() if id(p) not in own]
    assert len(rest) + len(scales) == len(list(model.parameters()))
    optimizer = torch.optim.AdamW([{"params": scales, "lr": 0.0}, {"params": rest}], 0.01)
    kept = [scale.detach().clone() for scale in scales]
    functional.cross_entropy(model.train()(X), TARGET).backward()
    optimizer.step()
    assert all(map(torch.equal, scales, kept))


def test_parts_that_are_frozen_first():
    model = prepared()
    for part in (model.first, model.second):
        part.requires_grad_(False).eval()
    kept = copy.deepcopy(model.first.state_dict())
    rquant.freeze(model.second)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    for _ in range(3):
        model.train()
        model.first.eval()
        optimizer.zero_grad()
        functional.cross_entropy(model(X), TARGET).backward()
        optimizer.step()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.first.state_dict().items())
    assert_freezes_to_itself(model)


def test_an_evaluation_in_the_middle_changes_nothing():
    one, two = prepared(activations="observed"), prepared(activations="observed")
    for model in (one, two):
        torch.manual_seed(0)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(2):
            functional.cross_entropy(model.train()(X), TARGET).backward()
            optimizer.step()
            if model is two:
                model.eval()(9 * X)
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))


def test_a_layer_that_runs_several_times():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, x):
            x = functional.relu(self.first(x))
            for _ in range(3):
                x = functional.relu(self.again(x)) + x
            return self.last(x)

    for how in ({}, {"activations": "observed"}):
        torch.manual_seed(0)
        model, x = Loop().eval(), torch.randn(16, 6)
        rquant.quantize(model, "int4", activations="int8")
        with rquant.Calibration():
            model(x)
        qat.prepare(model, **how)
        losses = train(model, x, 10)
        assert losses[-1] < losses[0]
        with torch.no_grad():
            want = model(x)
            rquant.freeze(model)
            assert torch.equal(model(x), want)
