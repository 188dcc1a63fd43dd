"""The examples worked by hand in the literature, as tests."""

import pytest
import torch

import rquant
from rquant import _ops


def test_absmax_of_a_tenth_is_four():
    """max 3.2: 127 / 3.2 * 0.1 = 3.97 -> 4; back 4 * 3.2 / 127 = 0.100787."""
    q, back = rquant.absmax_quantize(torch.tensor([0.1, 3.2, -1.0]))
    assert q.dtype == torch.int8
    assert q.tolist() == [4, 127, -40]
    assert back[0].item() == pytest.approx(0.100787, abs=1e-6)
    assert abs(back[0].item() - 0.1) == pytest.approx(0.000787, abs=1e-6)


def test_zeropoint_of_a_tenth_is_minus_one():
    """max 3.2, min -3.0: scale 255 / 6.2 = 41.129, Z = 123 - 128 = -5, 0.1 -> 4 - 5 = -1, back 0.0973."""
    x = torch.tensor([0.1, 3.2, -3.0])
    q, back = rquant.zeropoint_quantize(x)
    assert q.tolist() == [-1, 127, -128]
    assert back[0].item() == pytest.approx((-1 + 5) / 41.129, abs=1e-5)


@pytest.mark.parametrize("quantize", [rquant.absmax_quantize, rquant.zeropoint_quantize])
@pytest.mark.parametrize("value", [0.0, 2.5, -1e-45, 3e38])
def test_constant_tensors_divide_by_nothing(quantize, value):
    q, back = quantize(torch.full((3,), value))
    assert back.isfinite().all()
    assert q.unique().numel() == 1
    if quantize is rquant.absmax_quantize:
        assert back[0].item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("quantize", [rquant.absmax_quantize, rquant.zeropoint_quantize])
def test_nan_is_named_by_its_index(quantize):
    x = torch.zeros(4, 6)
    x[3, 5] = torch.nan
    with pytest.raises(ValueError, match=r"x: .*\[3, 5\]"):
        quantize(x)


def test_affine_scheme():
    """S = (b - a) / (qmax - qmin), Z = round(qmin - a / S); the range is widened to 0, which comes back exactly."""
    x = torch.tensor([[1.0, 4.0, 2.0], [-3.0, 0.0, 3.2]])
    q = rquant.quantize_tensor(x, "int8", symmetric=False)
    assert q.scale[:, 0].tolist() == pytest.approx([4 / 255, 6.2 / 255])
    assert q.zero_point.tolist() == [[-128], [-5]]  # round(-128 + 3 * 255 / 6.2)
    assert q.dequantize()[1, 1] == 0


def test_values_beyond_the_range_are_clipped_to_its_ends():
    x = torch.tensor([[-5.0, -1.0, 0.0, 0.5, 1.0, 9.0]])
    q = rquant.quantize_tensor(x, "int8", symmetric=True, range=(-1.0, 1.0))
    assert q.int_repr().tolist() == [[-127, -127, 0, 64, 127, 127]]  # 63.5 rounds to even


def test_rounding_is_half_to_even():
    q = rquant.quantize_tensor(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]), "int8")
    assert q.int_repr().tolist() == [[127, 0, 2, 2, 0, -2]]


@pytest.mark.parametrize(("name", "most"), [("int8", 127), ("int4", 7), ("int2", 1)])
def test_symmetric_leaves_the_lowest_code_out(name, most):
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    codes = rquant.quantize_tensor(x, name, symmetric=True).int_repr()
    assert codes.min() == -most
    assert codes.max() == most


def test_per_channel_on_any_axis():
    """`[N, C, H, W]`, axis 1: C pairs of S and Z."""
    x = (
        torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
        * torch.arange(1.0, 6)[:, None, None]
    )
    q = rquant.quantize_tensor(x, "int8", symmetric=False, axis=1)
    assert q.scale.numel() == q.zero_point.numel() == 5
    low, high = x.amin((0, 2, 3)), x.amax((0, 2, 3))
    torch.testing.assert_close(q.scale[:, 0], (high - low) / 255)
    assert q.int_repr().shape == x.shape
    assert ((q.dequantize() - x).abs() <= q.scale.reshape(5, 1, 1) * 0.5001).all()


def test_seven_billion_weights():
    assert rquant.estimate_size(7e9, 32) == 28.0
    assert rquant.estimate_size(7e9, 8) == 7.0
    assert rquant.estimate_size(7e9, 4) == 3.5
    assert rquant.estimate_size(64, 4, group_size=64) == (32 + 3) / 1e9


def test_ranges_to_steps():
    """[beta, alpha] -> 2**n - 1 steps; [-alpha, alpha] -> +-(2**(n - 1) - 1)."""
    x = torch.tensor([[-1.0, 3.0]])
    assert rquant.quantize_tensor(x, "int8", symmetric=False).scale.item() == pytest.approx(4 / 255)
    assert rquant.quantize_tensor(x, "int8", symmetric=True).scale.item() == pytest.approx(3 / 127)
    assert rquant.quantize_tensor(x, "int4", symmetric=True, group_size=-1).scale.item() == pytest.approx(
        3 / 7
    )


def test_integer_product_with_zero_points():
    """sum (xq - zx)(wq - zw) by integers alone, as the layer has it with zx = 0."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(3, 40, generator=generator), torch.randn(6, 40, generator=generator) + 0.3
    layer = torch.nn.Linear(40, 6, bias=False)
    layer.weight.data = w
    quantized = rquant.Linear.from_float(layer, "int8", activations="int8", symmetric=False)
    w_q = rquant.quantize_tensor(w, "int8", symmetric=False)
    x_q, x_scale = _ops.quantize_rows(x)
    products = x_q.long() @ w_q.int_repr().long().T
    corrected = products - w_q.zero_point.T.long() * x_q.long().sum(1, keepdim=True)
    expected = corrected.double() * x_scale.double()[:, None] * w_q.scale.T.double()
    torch.testing.assert_close(quantized(x).double(), expected, rtol=1e-5, atol=1e-6)
