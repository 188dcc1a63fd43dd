"""What a user's code does to activations in place, and by keywords: as in float, to aliases and views too."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import rquant


def helped(change):
    """A change by a function whose result nobody takes."""

    def body(net, x):
        y = net.a(x)
        change(y)
        return net.b(y)

    return body


def added_up(net, x):
    total = torch.zeros_like(x)
    for layer in (net.a, net.b):
        total.add_(layer(x))
    return net.c(total)


def added_to_an_alias(net, x):
    total = alias = torch.ones_like(x)
    total += net.a(x)
    return net.c(alias)


def changed_after_it_was_read(net, x):
    y = net.a(x)
    z = net.b(y)
    y[:, :4] = 0
    return net.c(y) + z


def read_before_inplace(net, x):
    y = net.a(x)
    z = net.b(y)
    return net.c(functional.silu(y, inplace=True)) + z + y


def part_of_a_part(net, x):
    y = net.a(x)
    y.chunk(2, 1)[0][:, 1:].relu_()
    return net.b(y)


def viewed_before(view, change):
    """Two views are taken, then what they are views of is changed, or the first."""

    def body(net, x):
        y = net.a(x)
        parts = view(y)
        change(y, parts)
        return net.b(y) * (1 + sum(part.abs().mean() for part in parts))

    return body


def thrice(whole, parts):
    whole.mul_(3)


def first_part_thrice(whole, parts):
    parts[0].mul_(3)


BODIES = {
    "seen in parts": viewed_before(lambda y: y.chunk(2, 1), thrice),
    "seen in parts of parts": viewed_before(lambda y: y[:, :6].split(3, 1)[1].split(1, 1), thrice),
    "seen in parts that overlap": viewed_before(lambda y: (y[:, :4], y[:, 2:]), first_part_thrice),
    "seen as another shape": viewed_before(lambda y: [y.flatten(1).view_as(y)], thrice),
    "relu seen in parts": viewed_before(
        lambda y: [y.unbind(1)[0].unsqueeze(1)], lambda whole, parts: functional.relu(whole, inplace=True)
    ),
    "copied by flip": viewed_before(lambda y: [y.flip(2)], first_part_thrice),
    "copied by reshape": viewed_before(lambda y: [y.permute(0, 2, 3, 1).reshape(y.shape)], first_part_thrice),
    "copied by contiguous": viewed_before(lambda y: [y.transpose(2, 3).contiguous()], first_part_thrice),
    "kept by contiguous": viewed_before(lambda y: [y.contiguous()], first_part_thrice),
    "mul": helped(lambda y: y.__imul__(3)),
    "sub": helped(lambda y: y.__isub__(torch.ones(8, 1, 1))),
    "div": helped(lambda y: y.__itruediv__(0.25)),
    "add a number": helped(lambda y: y.__iadd__(3)),
    "add a tensor": helped(lambda y: y.__iadd__(torch.arange(8.0).reshape(8, 1, 1))),
    "add_": helped(lambda y: y.add_(torch.ones(1), alpha=2)),
    "a slice": helped(lambda y: y[:, :4].mul_(3)),
    "a chunk": helped(lambda y: y.chunk(2, 1)[1].relu_()),
    "a transposed view": helped(lambda y: y.transpose(1, 2).clamp_(-0.1, 0.1)),
    "a slice added to": helped(lambda y: y[:, 1:].add_(1)),
    "functional": helped(lambda y: functional.leaky_relu(y, 0.5, inplace=True)),
    "part of a part": part_of_a_part,
    "added up": added_up,
    "added to an alias": added_to_an_alias,
    "changed after it was read": changed_after_it_was_read,
    "read before inplace": read_before_inplace,
    "input=": lambda net, x: net.b(torch.flip(torch.relu(input=net.a(x)), [1])),
    "add by names": lambda net, x: net.c(torch.add(input=net.a(x), other=net.b(x))),
    "axis=": lambda net, x: net.b(torch.cat([net.a(x)[:, :4], net.a(x)[:, :4]], axis=1)),
    "keepdims=": lambda net, x: net.b(net.a(x).mean((2, 3), keepdims=True) + x),
    "out=": lambda net, x: net.c(torch.add(net.a(x), net.b(x), out=torch.empty_like(x))),
    "a number of it": lambda net, x: net.b(net.a(x)) * float(net.a(x)[0, 0, 0, 0].detach()[None]),
}
NOT_IN_TRAINING = ("a chunk", "part of a part", "out=", "seen in parts", "relu seen in parts")
"""Torch has no gradients for them either."""


class Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in "abc")
        self.body = body

    def forward(self, x):
        return self.body(self, x)


@pytest.fixture(scope="module")
def x():
    return torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))


def calibrated(body, x):
    torch.manual_seed(0)
    plain = Net(body).eval()
    model = copy.deepcopy(plain)
    rquant.quantize(model, activations="int8")
    with rquant.Calibration("minmax"):
        model(x)
    for layer in (model.a, model.b):  # as if other readers kept them int8
        layer.flow = True
    return plain, model


@pytest.mark.parametrize("name", BODIES)
def test_as_in_float(name, x):
    plain, model = calibrated(BODIES[name], x)
    with torch.no_grad():
        want, got = plain(x), model(x)
        assert (got - want).norm() < 0.03 * want.norm()
    if name not in NOT_IN_TRAINING:
        learned = model.train()(x)
        learned.sum().backward()
        assert (learned - want).norm() < 0.03 * want.norm()
    rquant.freeze(model.eval())
    with torch.no_grad():
        assert torch.equal(model(x), got)


@pytest.mark.parametrize("whole_changes", [False, True])
def test_one_that_changes_its_shape_goes_on_by_itself(whole_changes, x):
    _, model = calibrated(lambda net, x: net.b(net.a(x)), x)
    with torch.no_grad():
        whole = model.a(x)
        part = whole[:, :4]
        changed, other = (whole, part) if whole_changes else (part, whole)
        shape = (1, *changed.shape)
        changed.unsqueeze_(0)
        before = other.float().clone()
        changed.mul_(3)
        other.mul_(2)
        assert tuple(changed.shape) == shape
        assert torch.equal(other.float(), 2 * before)


@pytest.mark.parametrize(
    "name",
    [
        "mul",
        "add a tensor",
        "a slice",
        "changed after it was read",
        "axis=",
        "relu seen in parts",
        "copied by reshape",
    ],
)
def test_compiled(name, x):
    _, model = calibrated(BODIES[name], x)
    rquant.freeze(model)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), model(x))


def test_what_does_not_fit_is_torchs_error(x):
    _, model = calibrated(lambda net, x: net.a(x), x)
    y = model.a(x)
    for change in (lambda: y.add_(torch.ones(3)), lambda: y.__imul__(torch.ones(2, 4, 8, 6, 6))):
        with pytest.raises(RuntimeError, match=r"size of tensor a|doesn't match the broadcast shape"):
            change()
