"""`quantize_per_tensor` and `quantize_per_channel` beside torch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rquant
from rquant.compat.torch_ao import quantize_per_channel, quantize_per_tensor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
TYPES = {torch.qint8: (-128, 127), torch.quint8: (0, 255)}


def values(seed, scales):
    """`[4, 3, 50]`, channels in dimension 1: of all sizes, many of them halfway between two codes."""
    generator = torch.Generator().manual_seed(seed)
    halves = torch.randint(-300, 300, (4, 3, 50), generator=generator) + 0.5
    spread = torch.randn(4, 3, 50, generator=generator) * 60
    x = torch.where(torch.rand(4, 3, 50, generator=generator) < 0.5, halves, spread)
    return (x * scales[:, None]).float()


cases = given(
    st.integers(0, 9999),
    st.lists(st.floats(1e-6, 1e6), min_size=3, max_size=3),
    st.lists(st.integers(0, 255), min_size=3, max_size=3),
    st.sampled_from(list(TYPES)),
)


@settings(max_examples=60, deadline=None)
@cases
def test_per_tensor(seed, scales, zeros, dtype):
    scale, zero = scales[0], zeros[0] + TYPES[dtype][0]
    x = values(seed, torch.full((3,), scale, dtype=torch.float64))  # far beyond, torch's int32 runs over
    want, got = torch.quantize_per_tensor(x, scale, zero, dtype), quantize_per_tensor(x, scale, zero, dtype)
    assert got.int_repr().dtype == want.int_repr().dtype
    assert torch.equal(got.int_repr(), want.int_repr())
    assert (got.qscheme(), got.q_zero_point(), got.dtype) == (want.qscheme(), want.q_zero_point(), want.dtype)
    assert got.q_scale() == pytest.approx(want.q_scale(), rel=1e-7)
    torch.testing.assert_close(got.dequantize(), want.dequantize(), rtol=1e-6, atol=scale * 1e-4)


@settings(max_examples=60, deadline=None)
@cases
def test_per_channel(seed, scales, zeros, dtype):
    scale, zero = torch.tensor(scales, dtype=torch.float64), torch.tensor(zeros) + TYPES[dtype][0]
    x = values(seed, scale)
    want = torch.quantize_per_channel(x, scale, zero, 1, dtype)
    got = quantize_per_channel(x, scale, zero, -2, dtype)
    assert torch.equal(got.int_repr(), want.int_repr())
    assert (got.qscheme(), got.q_per_channel_axis()) == (want.qscheme(), want.q_per_channel_axis())
    torch.testing.assert_close(got.q_per_channel_scales(), want.q_per_channel_scales(), rtol=1e-7, atol=0)
    assert torch.equal(got.q_per_channel_zero_points(), want.q_per_channel_zero_points())
    torch.testing.assert_close(got.dequantize(), want.dequantize(), rtol=1e-6, atol=max(scales) * 1e-4)


def test_what_torch_calls_it_on_our_own_tensors():
    x = torch.randn(6, 40)
    whole, rows = (
        rquant.quantize_tensor(x, "int8", False, axis=None),
        rquant.quantize_tensor(x, "int4", group_size=-1),
    )
    assert whole.qscheme() == torch.per_tensor_affine
    assert (whole.q_scale(), whole.q_zero_point()) == (whole.scale.item(), whole.zero_point.item())
    again = quantize_per_tensor(x, whole.q_scale(), whole.q_zero_point(), torch.qint8)
    assert (again.int_repr().int() - whole.int_repr().int()).abs().max() <= 1  # x * (1 / S) is not x / S
    assert rows.qscheme() == torch.per_channel_affine
    assert rows.q_per_channel_axis() == 0
    assert torch.equal(rows.q_per_channel_scales(), rows.scale[:, 0].double())
    assert torch.equal(rows.q_per_channel_zero_points(), rows.zero_point[:, 0].long())
    hqq = rquant.quantize_tensor(x, "int4", group_size=-1, range="hqq")
    assert hqq.qscheme() == torch.per_channel_affine_float_qparams
    assert hqq.q_per_channel_zero_points().dtype == torch.float64


def test_what_torch_has_no_name_for():
    whole, rows = (rquant.quantize_tensor(torch.randn(6, 40), axis=axis, qtype="int8") for axis in (None, 0))
    with pytest.raises(ValueError, match="q_scale: expected torch"):
        rows.q_scale()
    with pytest.raises(ValueError, match=r"q_per_channel_axis: expected .*, got torch\.per_tensor_affine"):
        whole.q_per_channel_axis()
    with pytest.raises(ValueError, match="expected one scale a channel or tensor, got qint4 affine group 8"):
        rquant.quantize_tensor(torch.randn(6, 40), "int4", group_size=8).q_per_channel_scales()


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: quantize_per_tensor(X, 0.0, 0, torch.qint8),
            r"scale: expected positive and finite, got \[0.0",
        ),
        (lambda: quantize_per_tensor(X, float("nan"), 0, torch.qint8), "scale: expected positive"),
        (
            lambda: quantize_per_tensor(X, 0.1, 128, torch.qint8),
            r"zero_point: expected integers in \[-128, 127\]",
        ),
        (
            lambda: quantize_per_tensor(X, 0.1, 0.5, torch.quint8),
            r"zero_point: expected integers in \[0, 255\]",
        ),
        (
            lambda: quantize_per_tensor(X, 0.1, 0, torch.qint32),
            "dtype: expected torch.qint8 or torch.quint8, got",
        ),
        (
            lambda: quantize_per_tensor(X.half(), 0.1, 0, torch.qint8),
            "input: expected a tensor of float32, got torch.f",
        ),
        (lambda: quantize_per_tensor(X / 0, 0.1, 0, torch.qint8), r"input: expected finite .* at \[0, 0\]"),
        (
            lambda: quantize_per_channel(X, X[0], X[0].int(), 0, torch.qint8),
            r"scales: expected shape \(2,\), got \(3,\)",
        ),
        (
            lambda: quantize_per_channel(X, X[0], X[0].int(), 2, torch.qint8),
            r"axis: expected a dimension of shape \(2, 3\)",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_empty_and_scalar():
    assert quantize_per_tensor(torch.empty(0, 3), 0.1, 0, torch.qint8).int_repr().shape == (0, 3)
    assert quantize_per_tensor(torch.tensor(0.3), 0.1, 0, torch.qint8).int_repr().item() == 3
