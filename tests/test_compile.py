"""`torch.compile` of quantized models: one graph, the same outputs and gradients, the same errors."""

import shutil

import pytest
import torch
from small_models import Tied, bert, frozen, llama
from torch import nn

import rquant


class Graphs:
    """A backend that counts the graphs it is given and runs them through AOT autograd."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("weights", ["int8", "int4", "int2"])
def test_a_layer_of_any_width_for_any_number_of_rows(weights, activations):
    layer, graphs = rquant.Linear.from_float(nn.Linear(32, 16), weights, activations), Graphs()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=graphs)
    for shapes in ([(3, 32), (7, 32)], [(2, 5, 32), (3, 4, 32)]):
        graphs.count = 0
        for shape in shapes:
            x = torch.randn(shape)
            assert torch.equal(compiled(x), layer(x))
        assert graphs.count == 1


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("make", [Tied, llama, bert])
def test_models(make, activations):
    model, ids = frozen(make(), "int4", activations, group_size=16), torch.arange(12).reshape(3, 4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids), model(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activations", [None, "int8"])
def test_gradients_to_the_input(activations):
    model = frozen(
        nn.Sequential(nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 4, bias=False)), "int4", activations
    )
    compiled, x = torch.compile(model, fullgraph=True, backend="aot_eager"), torch.randn(3, 32)
    grads = []
    for run in (model, compiled):
        there = x.clone().requires_grad_()
        run(there).square().sum().backward()
        grads.append(there.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("freeze", [True, False])
def test_gradients_to_parameters(activations, freeze):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 24), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))
    ids = torch.arange(12).reshape(3, 4)
    rquant.quantize(model, "int4", activations, include="*")
    if freeze:
        rquant.freeze(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(ids), model(ids))
    model.zero_grad()
    model(ids).sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    want = [p.grad.clone() for p in trained]
    model.zero_grad()
    compiled(ids).sum().backward()
    for parameter, grad in zip(trained, want, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


class Looks(nn.Module):
    """Asks a layer for its weight, as T5 and attention do."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        x = self.inner(x.to(self.inner.weight.dtype))
        return self.attention(x, x, x, need_weights=False)[0]


def test_a_model_that_reads_weights():
    model, x = Looks().eval(), torch.randn(2, 3, 16)
    rquant.quantize(model)
    rquant.freeze(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("grad", [True, False])
def test_errors_say_the_same(grad):
    layer = rquant.Linear.from_float(nn.Linear(32, 16))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        for x, message in (
            (torch.randn(3, 31), r"x: expected a last dimension of 32, got shape \(3, 31\)"),
            (
                torch.randn(3, 32).double(),
                "x: expected dtype float32, float16 or bfloat16, got torch.float64",
            ),
        ):
            # torch's native dispatcher has no ValueError: without gradients a compiled call meets it directly
            with pytest.raises((ValueError, RuntimeError), match=message):
                compiled(x)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
def test_inductor():
    model, ids = frozen(Tied(), "int4", "int8"), torch.arange(12).reshape(3, 4)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(ids), model(ids))
