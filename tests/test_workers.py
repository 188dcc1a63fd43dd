"""Layers called from several threads at once and from forked workers, whatever ran before."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from small_models import Tied, frozen
from torch import nn

import rquant


def gradient(layer, x):
    there = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(layer(there).square().sum(), there)
    return found


@pytest.mark.parametrize("form", ["packed", "canonical", "unfrozen"])
def test_threads_call_one_model_forward_and_backward(form, set_num_threads):
    model = Tied()
    rquant.quantize(model, "int4", "int8")
    if form != "unfrozen":
        rquant.freeze(model)
    if form == "canonical":  # as on a device without kernels
        for layer in (model.middle, model.head, model.embed):
            names = ("weight_packed", "weight_scale", "weight_zero_point")
            layer.hold(dict(zip(names, layer.canonical(), strict=False)))
    set_num_threads(2)
    batches = [torch.arange(m) for m in (1, 3, 17, 20)]
    inputs = [torch.randn(m, 32) for m in (1, 3, 17, 40)]
    want = [model(ids).detach() for ids in batches], [gradient(model.middle, x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            outputs = list(pool.map(model, batches))
            gradients = list(pool.map(lambda x: gradient(model.middle, x), inputs))
            assert all(torch.equal(a, b) for a, b in zip(outputs, want[0], strict=True))
            assert all(torch.equal(a, b) for a, b in zip(gradients, want[1], strict=True))


def test_threads_quantize_models_of_their_own(set_num_threads):
    set_num_threads(2)

    def state(seed):
        generator = torch.Generator().manual_seed(seed)
        layer = nn.Linear(96, 64)
        layer.weight.data = torch.randn(64, 96, generator=generator)
        return rquant.Linear.from_float(layer, "int4").state_dict()["weight_packed"]

    want = [state(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(a, b) for a, b in zip(pool.map(state, range(8)), want, strict=True))


class Outputs(torch.utils.data.Dataset):
    """Items that a model computes."""

    def __init__(self, model, ids):
        self.model, self.ids = model, ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        with torch.no_grad():
            return self.model(self.ids[i : i + 1])[0]


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("freeze", [True, False])
def test_workers_forked_after_the_parent_has_used_its_threads(freeze, set_num_threads):
    set_num_threads(2)
    wide = frozen(nn.Sequential(nn.Linear(1024, 1024)), "int8", "int8")
    wide(torch.randn(64, 1024))  # enough work for two threads, which a fork does not take along
    model, ids = Tied(), torch.arange(8)
    rquant.quantize(model, "int4", "int8")
    if freeze:
        rquant.freeze(model)
    want = model(ids).detach()
    loader = torch.utils.data.DataLoader(
        Outputs(model, ids), 4, num_workers=2, multiprocessing_context="fork", timeout=600
    )
    assert torch.equal(torch.cat(list(loader)), want)
    assert torch.equal(torch.cat(list(loader)), want)  # and once more
