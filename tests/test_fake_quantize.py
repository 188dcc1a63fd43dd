"""Fake quantization: its forward is the deployed rounding, its gradients are those of the papers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rquant import optimize
from rquant._fake_quantize import fake_quantize_activations
from rquant.qat.scales import LearnedWeightScale
from rquant.scheme import Scheme


def straight(x):
    """Rounding as autograd may see it: the gradient of the identity."""
    return x.round().detach() + (x - x.detach())


def plain(x, scale, zero, lowest, highest):
    """The same by plain torch, differentiated by autograd: equation 1 of LSQ with rounding made straight."""
    steps = straight(x / scale) + zero
    clipped = torch.where(steps < lowest, lowest, torch.where(steps > highest, highest, steps))
    return (clipped - zero) * scale


@given(
    zero=st.integers(-127, 127),
    scale=st.floats(1e-3, 10),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_activations(zero, scale, seed, dtype):
    x = (torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)) * 100 * scale).to(dtype)
    s = torch.tensor([scale], dtype=torch.float32)
    z = torch.tensor([zero], dtype=torch.int8)
    q = ((x.float() / s).round() + zero).clamp(-127, 127)
    assert torch.equal(fake_quantize_activations(x, s, z), (s * (q - zero)).to(dtype))


@pytest.mark.parametrize("zero", [0, -127, 40])
def test_gradients_of_activations(zero):
    torch.manual_seed(0)
    x = (torch.randn(4, 6, 5) * 3).requires_grad_()
    scale, z = torch.tensor([0.02], requires_grad=True), torch.tensor([zero], dtype=torch.int8)
    upstream = torch.randn(4, 6, 5)
    (fake_quantize_activations(x, scale, z) * upstream).sum().backward()
    got = x.grad, scale.grad
    steps = (x / scale).round() + zero
    inside = (steps >= -127) & (steps <= 127)
    assert 0 < inside.sum() < inside.numel()
    assert torch.equal(got[0], torch.where(inside, upstream, 0.0))
    of_scale = torch.where(inside, (x / scale).round() - x / scale, steps.clamp(-127, 127) - zero)
    want = (upstream * of_scale).sum() / math.sqrt(30 * 127)
    torch.testing.assert_close(got[1], want.reshape(1))
    x.grad = scale.grad = None
    (plain(x, scale, zero, -127, 127) * upstream).sum().backward()
    torch.testing.assert_close(x.grad, got[0])
    torch.testing.assert_close(scale.grad / math.sqrt(30 * 127), got[1], rtol=1e-4, atol=1e-5)


def test_no_gradient_passes_what_is_not_a_number():
    x = torch.tensor([[1.0, math.nan, math.inf, -math.inf]], requires_grad=True)
    out = fake_quantize_activations(x, torch.ones(1), torch.zeros(1, dtype=torch.int8))
    out.nansum().backward()
    assert x.grad.tolist() == [[1.0, 0.0, 0.0, 0.0]]


SCHEMES = [
    Scheme.resolve("int8"),
    Scheme.resolve("int8", -1, False),
    Scheme.resolve("int4", 4, True),
    Scheme.resolve("int4", 4, False),
    Scheme.resolve("int2", 5, False),
    Scheme.resolve("int2", -1, True),
]


@pytest.mark.parametrize("per_tensor", [False, True], ids=["own", "tensor"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_weights(scheme, per_tensor):
    torch.manual_seed(0)
    weight = torch.randn(6, 18, requires_grad=True)
    learned = LearnedWeightScale(weight, scheme, per_tensor, "mse")
    with torch.no_grad():  # as training might: now much is clipped
        learned.log_scale.sub_(torch.rand_like(learned.log_scale))
    upstream = torch.randn(6, 18)
    out = learned.fake_quantize(weight, scheme)
    (out * upstream).sum().backward()
    groups = 1 if scheme.per_channel else -(-18 // scheme.group_size)
    assert learned.log_scale.numel() == (1 if per_tensor else 6 * groups)

    q = optimize.choose(
        weight.detach(), Scheme(scheme.qtype, scheme.symmetric, scheme.group_size, "uint8", learned)
    )
    assert torch.equal(q.scale, learned.stored())
    size = 18 if scheme.per_channel else scheme.group_size
    half = 1 << (scheme.bits - 1)
    log_scale = learned.log_scale.detach().clone().requires_grad_()
    exact = log_scale.exp()
    # as stored, with the gradient of what it was rounded from
    scale = exact + (q.scale.float() - exact).detach()
    scale = scale.expand(6, groups).repeat_interleave(size, 1)[:, :18]
    zero = torch.zeros(6, groups) if q.zero_point is None else q.zero_point.float() - half
    zero = zero.repeat_interleave(size, 1)[:, :18]
    reference = weight.detach().clone().requires_grad_()
    want = plain(reference, scale, zero, -half + scheme.symmetric, half - 1)
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-7)
    (want * upstream).sum().backward()
    torch.testing.assert_close(weight.grad, reference.grad)
    assert (weight.grad == 0).any()
    qmax = half - 1 if scheme.symmetric else 2 * half - 1
    sharing = 6 * 18 // log_scale.numel()
    factor = (
        math.sqrt(sharing * qmax) * log_scale.detach().exp().square()
    )  # autograd's is S times the scale's gradient
    torch.testing.assert_close(learned.log_scale.grad, log_scale.grad / factor, rtol=1e-4, atol=1e-5)


def test_the_scale_s_gradient_is_that_of_a_finite_difference():
    """Of the error's square, where clipping is what changes: rounding's own steps average out over many elements."""
    torch.manual_seed(0)
    x = torch.randn(200_000)
    scale, zero = torch.tensor([0.01], requires_grad=True), torch.zeros(1, dtype=torch.int8)
    (fake_quantize_activations(x, scale, zero) - x).square().mean().backward()

    def error(s):
        return (fake_quantize_activations(x, torch.tensor([s]), zero) - x).double().square().mean().item()

    difference = (error(0.0101) - error(0.0099)) / 2e-4
    assert scale.grad.item() * math.sqrt(200_000 * 127) == pytest.approx(difference, rel=0.02)


def test_scales_stay_positive():
    weight = torch.randn(4, 8)
    learned = LearnedWeightScale(weight, Scheme.resolve("int8"), False, "minmax")
    optimizer = torch.optim.SGD(learned.parameters(), 1e3)
    before = learned.scale.detach()
    learned.log_scale.grad = torch.full_like(learned.log_scale, 0.01)
    optimizer.step()
    assert (learned.scale > 0).all()
    assert (learned.scale < before).all()
