"""Gradients through frozen layers, wherever torch asks for them: functorch, checkpoints, autocast, adapters."""

import pytest
import torch
from small_models import frozen
from torch import nn
from torch.utils.checkpoint import checkpoint

import rquant


@pytest.fixture(params=[None, "int8"], ids=["float", "int8"])
def layer(request):
    torch.manual_seed(0)
    return rquant.Linear.from_float(nn.Linear(32, 16), "int4", request.param)


@pytest.fixture
def x():
    return torch.randn(3, 32, generator=torch.Generator().manual_seed(1))


def gradient(function, x):
    there = x.clone().requires_grad_()
    function(there).square().sum().backward()
    return there.grad


def test_it_is_the_weight_s_transpose(layer, x):
    y = layer(x).detach()
    torch.testing.assert_close(gradient(layer, x), 2 * y @ layer.dequantize())


def test_it_has_a_derivative_itself(layer, x):
    x.requires_grad_()
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    first.sum().backward()
    w = layer.dequantize()
    torch.testing.assert_close(x.grad, 2 * torch.ones_like(x) @ w.T @ w)


@pytest.mark.filterwarnings("ignore:.*batching rule.*:UserWarning")
def test_functorch(layer, x):
    torch.testing.assert_close(torch.func.grad(lambda x: layer(x).square().sum())(x), gradient(layer, x))
    torch.testing.assert_close(torch.func.jacrev(layer)(x[0]), layer.dequantize())
    torch.testing.assert_close(torch.func.vmap(layer)(x[:, None]), layer(x)[:, None])
    each = torch.func.vmap(torch.func.grad(lambda row: layer(row).square().sum()))(x)
    torch.testing.assert_close(each, gradient(layer, x))
    bias = torch.randn(16)
    other = torch.func.functional_call(layer, {"bias": bias}, x)
    torch.testing.assert_close(other, layer(x) - layer.bias + bias)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(layer, x, reentrant):
    got = gradient(lambda x: checkpoint(layer, x, use_reentrant=reentrant), x)
    assert torch.equal(got, gradient(layer, x))
    with torch.autograd.graph.save_on_cpu():
        assert torch.equal(gradient(layer, x), got)


def test_autocast_leaves_the_layer_its_dtype(layer, x):
    """Its inputs are read as they come; what torch makes bfloat16 stays so."""
    after = nn.Linear(16, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32
        assert layer(x.bfloat16()).dtype == torch.bfloat16
        got = gradient(lambda x: after(layer(x)).float(), x)
    want = gradient(lambda x: after(layer(x)), x)
    assert got.dtype == torch.float32
    assert nn.functional.cosine_similarity(got.flatten(), want.flatten(), 0) > 0.999


def test_weights_changed_between_forward_and_backward_are_an_error(layer, x):
    y = layer(x.requires_grad_())
    layer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


class LoRA(nn.Module):
    """A frozen layer and a trainable product of rank 4 (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>)."""

    def __init__(self, base):
        super().__init__()
        self.base, (n, k) = base, base.weight.shape
        self.a, self.b = nn.Parameter(torch.randn(4, k) / k**0.5), nn.Parameter(torch.zeros(n, 4))

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


@pytest.mark.parametrize("activations", [None, "int8"])
def test_pain_15_adapters_learn_through_packed_layers(activations):
    """Adapters on each of two packed layers: the first one's gradient comes through the second."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8))
    x, target = torch.randn(64, 32), torch.randn(64, 8)
    frozen(model, "int4", activations)
    packed = {name: tensor.clone() for name, tensor in model.state_dict().items() if "packed" in name}
    model[0], model[2] = LoRA(model[0]), LoRA(model[2])
    adapters = [p for layer in (model[0], model[2]) for p in (layer.a, layer.b)]
    optimizer, losses = torch.optim.Adam(adapters, 0.02), []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad.abs().max() > 0 for p in adapters)
    assert losses[-1] < 0.7 * losses[0]
    after = {name.replace("base.", ""): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in packed.items())
