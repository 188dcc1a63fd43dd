"""`rquant.numerics` against torch's own bits, and the examples in its docstrings."""

import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rquant
from rquant.numerics import describe, layout

FLOATS = {
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e5m2: torch.uint8,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def test_the_docstrings_hold():
    outcome = doctest.testmod(rquant.numerics)
    assert outcome.attempted >= 7
    assert outcome.failed == 0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_layout_is_what_torch_says(dtype):
    f, info = layout(dtype), torch.finfo(dtype)
    assert f.bits == info.bits
    assert (f.max, f.min, f.smallest_normal) == (info.max, info.min, info.smallest_normal)
    assert 2.0 ** (1 - f.significand_bits) == info.eps


@pytest.mark.parametrize("dtype", [d for d in FLOATS if d is not torch.float64], ids=str)
@given(x=st.floats(width=32, allow_nan=False) | st.floats(-600, 600, width=32))
def test_bits_are_torchs(dtype, x):
    """From float32, where torch rounds once."""
    stored = torch.tensor([x], dtype=torch.float32).to(dtype)
    value, bits = stored.double().item(), stored.view(FLOATS[dtype]).item() % (1 << layout(dtype).bits)
    described = describe(x, dtype)
    if dtype is torch.float8_e4m3fn and abs(x) > 464:  # halfway to where 480 would be; newer torch saturates
        assert math.isnan(described.value)
        return
    assert int(described.bits, 2) == bits
    assert described.value == value
    assert [len(field) for field in described.fields] == [
        1,
        layout(dtype).exponent_bits,
        layout(dtype).mantissa_bits,
    ]


@given(st.floats())
def test_float64_is_itself(x):
    described = describe(x, "fp64")
    assert described.value == x or (math.isnan(x) and math.isnan(described.value))
    if not math.isnan(x):
        assert int(described.bits, 2) == np.float64(x).view(np.uint64)


@given(st.integers(-128, 127))
def test_twos_complement(x):
    bits = describe(x, rquant.qint8).bits
    assert int(bits, 2) == np.int8(x).view(np.uint8)
    assert int.from_bytes(int(bits, 2).to_bytes(1, "big"), "big", signed=True) == x


def test_scalars_of_torch_and_numpy_are_taken():
    assert describe(torch.tensor(19, dtype=torch.int8), torch.int8).bits == "00010011"
    assert describe(np.float32(0.1), np.dtype("float16")).value == float(np.float16(0.1))


@pytest.mark.parametrize(
    ("x", "dtype", "message"),
    [
        (254, "int8", "x: expected a whole number from -128 to 127 for int8, got 254"),
        (0.5, "int8", "x: expected a whole number"),
        (math.nan, "int4", "x: expected a whole number from -8 to 7"),
        (-1, "uint8", "x: expected a whole number from 0 to 255"),
        ("a", "int8", "x: expected one number, got 'a'"),
        (torch.zeros(2), "int8", "x: expected one number"),
        (1, "int7", "dtype: expected one of int2"),
    ],
)
def test_errors_name_the_argument(x, dtype, message):
    with pytest.raises(ValueError, match=message):
        describe(x, dtype)
