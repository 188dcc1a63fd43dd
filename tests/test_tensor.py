"""quantize_tensor against the plain-torch reference, over shapes, groups, types and values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rquant
from rquant import _native
from rquant._backends import reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SPREADS = (1.0, 1e-30, 1e-42, 1e30, 0.0)


@st.composite
def matrices(draw):
    rows, cols = draw(st.integers(1, 9)), draw(st.integers(1, 150))
    x = torch.randn(rows, cols, generator=torch.Generator().manual_seed(draw(st.integers(0, 999))))
    x[:, draw(st.integers(0, cols - 1))] *= draw(st.sampled_from((1.0, 100.0, 0.0)))
    x = x * draw(st.sampled_from(SPREADS)) + draw(st.sampled_from((0.0, 0.7)))
    return x.to(draw(st.sampled_from(DTYPES))).nan_to_num()  # float16 overflows: take its largest


schemes = st.tuples(st.sampled_from((8, 4, 2)), st.sampled_from((-1, 1, 3, 7, 32, 64, 151)), st.booleans())


def same(a, b):
    return a is b is None or (a.dtype == b.dtype and torch.equal(a, b))


@settings(max_examples=200, deadline=None)
@given(matrices(), schemes)
def test_every_byte_is_the_reference_s(x, scheme):
    bits, group, symmetric = scheme
    got, want = _native.quantize(x, bits, group, symmetric), reference.quantize(x, bits, group, symmetric)
    assert same(got.scale, want.scale)
    assert same(got.zero_point, want.zero_point)
    assert same(got.codes, want.codes)
    floats = _native.dequantize(got, torch.empty(x.shape))
    assert same(floats, reference.dequantize_canonical(want, torch.float32))
    assert floats.isfinite().all()


@settings(max_examples=100, deadline=None)
@given(matrices(), schemes)
def test_unpack_is_the_inverse_of_pack(x, scheme):
    q = _native.quantize(x, *scheme)
    back = _native.unpack(_native.pack(q))
    assert all(same(a, b) for a, b in zip(q[:3], back[:3], strict=True))
    codes = _native.unpack_codes(q)
    assert torch.equal(codes, reference.unpack_codes(q.codes, q.cols, q.bits))
    assert torch.equal(_native.pack_codes(codes, q.bits), q.codes)


@settings(max_examples=100, deadline=None)
@given(matrices(), schemes)
def test_error_is_at_most_half_a_step_and_zero_is_exact(x, scheme):
    bits, group, symmetric = scheme
    if x.abs().max() > 1e4 or 0 < x.abs().max() < 1e-3 or x.dtype != torch.float32:
        return  # the bound is about rounding, not about float16's range
    q = rquant.quantize_tensor(x, f"int{bits}", symmetric, group_size=group)
    step = reference.expand(q.scale.float(), x.shape[1], group)
    # a scale rounded to float16, and Z to an integer, may cost up to one step more at the range's ends
    assert (
        (q.dequantize() - x).abs() <= step * 1.05 * (0.5 + (not symmetric) * 0.5) + step * 2**bits * 2**-11
    ).all()
    assert (q.dequantize()[x == 0] == 0).all()


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("group_size", [-1, 5])
def test_an_axis_is_rows_moved_to_the_front(axis, group_size):
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    q = rquant.quantize_tensor(x, "int4", axis=axis, group_size=group_size)
    rows = x.movedim(axis, 0).reshape(x.shape[axis], -1)
    plain = rquant.quantize_tensor(rows, "int4", group_size=group_size)
    assert torch.equal(q.dequantize(), plain.dequantize().reshape(x.movedim(axis, 0).shape).movedim(0, axis))
    assert q.axis == axis % 3
    assert q.dequantize().shape == q.int_repr().shape == x.shape


def test_per_tensor_has_one_scale():
    x = torch.randn(3, 4, 5)
    q = rquant.quantize_tensor(x, rquant.qint4, axis=None)
    assert q.scale.shape == (1, 1)
    assert q.scale.dtype == torch.float32
    assert q.dequantize(torch.bfloat16).dtype == torch.bfloat16


def test_absmax_range_is_symmetric_around_zero():
    x = torch.tensor([[-1.0, 3.0, 0.5]])
    q = rquant.quantize_tensor(x, "int8", symmetric=False, range="absmax")
    assert q.scale.item() == pytest.approx(6 / 255)


def test_sizes():
    q = rquant.quantize_tensor(torch.randn(256, 384), "int4", group_size=128)
    assert q.nbytes == 256 * (192 + 3 * (2 + 1))
    assert q.nbytes * 8 / (256 * 384) <= 4.3
    assert q.scale.dtype == torch.float16
    assert q.zero_point.dtype == torch.int8


def test_scales_beyond_float16_are_float32_for_the_whole_tensor():
    x = torch.randn(4, 64)
    x[2] *= 1e8
    assert rquant.quantize_tensor(x, "int4").scale.dtype == torch.float32


def test_a_device_without_values():
    moved = rquant.quantize_tensor(torch.randn(4, 64), "int4").to("meta")
    assert moved.device.type == "meta"
    assert moved.dequantize().shape == (4, 64)


def test_the_input_is_only_read():
    x = torch.randn(8, 8).T
    before = x.clone()
    rquant.quantize_tensor(x, "int8")
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(2, 2, dtype=torch.float64)}, "x: .*float64"),
        ({"x": [1.0]}, "x: .*list"),
        ({"x": torch.zeros(0, 3)}, r"x: .*\(0, 3\)"),
        ({"qtype": "int3"}, "qtype: .*qint2, qint4, qint8, qfloat8_e4m3fn, qfloat8_e5m2, got 'int3'"),
        ({"axis": 2}, r"axis: .*\(2, 4\), got 2"),
        ({"axis": None, "group_size": 4}, "group_size: .*got 4"),
        ({"group_size": 0}, "group_size: .*got 0"),
        ({"group_size": (2, 0)}, r"group_size: .*got \(2, 0\)"),
        ({"range": "least"}, "range: .*'least'"),
        ({"range": (1.0, -1.0)}, r"range: .*\(1.0, -1.0\)"),
        ({"symmetric": "no"}, "symmetric: .*'no'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        rquant.quantize_tensor(**{"x": torch.ones(2, 4), "qtype": "int8", **arguments})


@pytest.mark.parametrize(("axis", "bad"), [(0, torch.inf), (2, -torch.inf), (None, torch.nan)])
def test_nan_and_infinity_are_named_in_the_tensor_s_own_index(axis, bad):
    x = torch.zeros(3, 4, 5)
    x[1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"x: .*\[1, 2, 3\]"):
        rquant.quantize_tensor(x, "int8", axis=axis)
