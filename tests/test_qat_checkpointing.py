"""Blocks under `torch.utils.checkpoint` train as they do without, and values have the gradients of where they were made."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import rquant
from rquant import qat

SEES_HOOKS = hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
needs_hooks = pytest.mark.skipif(not SEES_HOOKS, reason="torch before 2.8 does not tell hooks")
X = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        return functional.relu(self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))) + x)


class PreActivated(Residual):
    def forward(self, x):
        y = functional.relu(x)
        return self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(y))))) + functional.avg_pool2d(
            y, 3, 1, 1
        )


class Net(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.ModuleList([block(), block()])
        self.head, self.run = nn.Linear(8, 5), lambda block, x: block(x)

    def forward(self, x):
        x = functional.relu(self.stem(x))
        for block in self.blocks:
            x = self.run(block, x)
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def net(block=Residual, run=None, **how):
    torch.manual_seed(0)
    model = Net(block)
    with torch.no_grad():
        model.train()(X)
    rquant.quantize(model.eval(), "int4", activations="int8")
    qat.fold_bn(model, X)
    with rquant.Calibration():
        model(X)
    qat.prepare(model, **how)
    model.run = run or model.run
    return model.train()


def step(model, x=X):
    loss = functional.cross_entropy(model(x), torch.arange(len(x)) % 5)
    loss.backward()
    return loss


def assert_same(got, want):
    """Gradients, scales, observers, running statistics."""
    state = want.state_dict()
    assert [n for n, t in got.state_dict().items() if not torch.equal(t, state[n])] == []
    mine, grads = ({n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in (got, want))
    assert mine.keys() == grads.keys() >= {n for n in state if n.endswith("weight")}
    assert [n for n, grad in mine.items() if not torch.equal(grad, grads[n])] == []


def by_itself(block, x):
    return checkpoint(block, x, use_reentrant=False)


def nested(block, x):
    return checkpoint(lambda y: checkpoint(block, y, use_reentrant=False), x, use_reentrant=False)


def with_hooks(block, x):
    with save_on_cpu():
        return checkpoint(block, x, use_reentrant=False)


def of_tensors(block, x):
    return block(x.float()).float()


def reentrant(block, x):
    return checkpoint(lambda y: block(y).float(), x.float(), use_reentrant=True)


@needs_hooks
@pytest.mark.parametrize("block", [Residual, PreActivated])
@pytest.mark.parametrize("how", [{}, {"activations": "observed"}], ids=["learned", "observed"])
@pytest.mark.parametrize("run", [by_itself, nested, with_hooks])
def test_a_checkpointed_block_trains_the_same(run, how, block):
    plain, saving = net(block, **how), net(block, run, **how)
    for _ in range(2):
        assert torch.equal(step(saving), step(plain))
    assert_same(saving, plain)


@pytest.mark.parametrize("how", [{}, {"activations": "observed"}], ids=["learned", "observed"])
def test_reentrant_of_tensors(how):
    plain, saving = net(run=of_tensors, **how), net(run=reentrant, **how)
    for _ in range(2):
        assert torch.equal(step(saving), step(plain))
    assert_same(saving, plain)


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_reentrant_of_activations_is_refused():
    """Which would come back without gradients, and no word."""
    with pytest.raises(RuntimeError, match="checkpoint: expected use_reentrant=False"):
        step(net(run=lambda block, x: checkpoint(block, x, use_reentrant=True)))
    with pytest.raises(RuntimeError, match="checkpoint: expected use_reentrant=False"):
        step(net(run=lambda block, x: checkpoint(block.conv1, x.float(), use_reentrant=True)))


@needs_hooks
def test_of_a_frozen_model_behind_a_float_layer():
    models = [net(), net(run=by_itself)]
    for model in models:
        rquant.freeze(model.eval())
    before = nn.Conv2d(3, 3, 1)
    grads = []
    for model in models:
        before.zero_grad()
        step(model, before(X))
        grads.append(before.weight.grad.clone())
    assert torch.equal(*grads)


def test_a_look_without_gradients_takes_none_away():
    grads = []
    for looking in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        model = net()
        qat.freeze_bn_stats(model)
        x = functional.relu(model.stem(X))
        with looking():
            model.blocks[0](x)
        out = model.head(functional.adaptive_avg_pool2d(model.blocks[1](x), 1).flatten(1))
        out.square().mean().backward()
        grads.append(model.stem.weight.grad)
    assert grads[0] is not None
    assert all(grad is not None and torch.equal(grad, grads[0]) for grad in grads[1:])


def test_what_was_made_without_gradients_gets_none():
    model = net()
    with torch.no_grad():
        x = functional.relu(model.stem(X))
    model.head(functional.adaptive_avg_pool2d(model.blocks[0](x), 1).flatten(1)).sum().backward()
    assert model.stem.weight.grad is None
    assert model.blocks[0].conv1.weight.grad is not None
