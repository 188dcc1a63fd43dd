"""The native kernels of statically quantized products against their definition in plain torch: equal integers."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rquant import _native, _static_ops, optimize
from rquant._backends import static_cpu, static_reference


def codes(*shape: int, seed: int = 0) -> torch.Tensor:
    q = torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    return q.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else q


def qparams(scale: float, zero: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([scale]), torch.tensor([zero], dtype=torch.int8)


def packed(
    n: int, k: int, groups: int, kind: int = 8, group: int = -1, symmetric: bool = True
) -> torch.Tensor:
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(1))
    return _native.pack(optimize.by_arguments(weight, kind, group, symmetric, "minmax"), groups=groups)


EPILOGUES = {
    "float": lambda shape: (None, None, None, -math.inf, math.inf, None, None, torch.float32),
    "half": lambda shape: (None, None, None, 0.0, math.inf, None, None, torch.bfloat16),
    "codes": lambda shape: (None, None, None, 0.0, 6.0, *qparams(0.03, -127), None),
    "add": lambda shape: (codes(*shape, seed=2), *qparams(0.02, 9), 0.0, math.inf, *qparams(0.1, -20), None),
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_convolution_is_its_definition(data):
    small = st.integers(1, 3)
    groups, transposed = data.draw(st.sampled_from([1, 2, 8, 24])), data.draw(st.booleans())
    each, outputs = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    kernel, stride, dilation = (data.draw(st.tuples(small, small)) for _ in range(3))
    ends = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    padding = (*ends, *ends) if transposed else data.draw(st.tuples(*[st.integers(0, 2)] * 4))
    batch, size = data.draw(small), data.draw(st.tuples(st.integers(5, 9), st.integers(5, 9)))
    kind, group, symmetric = data.draw(
        st.sampled_from([(8, -1, True), (8, 16, False), (4, 8, False), (2, 7, True)])
    )
    shape = (kernel, stride, padding, dilation, groups, transposed, (0, 0))
    conv = _static_ops.conv_shape(size, kernel, stride, padding, dilation, transposed, (0, 0))
    if min(conv) < 1:
        return
    n = groups * outputs
    panels = packed(n, kernel[0] * kernel[1] * each, groups, kind, group, symmetric)
    x_scale, x_zero = qparams(0.05, data.draw(st.sampled_from([0, -127, 33])))
    if data.draw(st.booleans()):
        x_scale = torch.rand(batch) + 0.01
    bias = torch.randn(n) if data.draw(st.booleans()) else None
    epilogue = EPILOGUES[data.draw(st.sampled_from(sorted(EPILOGUES)))]((batch, n, *conv))
    arguments = (codes(batch, groups * each, *size), x_scale, x_zero, panels, bias, n, *shape, *epilogue)
    got = static_cpu.conv_static(*arguments)
    assert torch.equal(got, static_reference.conv_static(*arguments))
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("scheme", [(8, -1, True), (4, 32, False)], ids=str)
@pytest.mark.parametrize("rows", [(), (1,), (3, 7), (70,), (0, 2)], ids=str)
def test_linear_is_its_definition(rows, scheme, epilogue):
    x, panels, bias = codes(*rows, 96), packed(40, 96, 1, *scheme), torch.randn(40)
    arguments = (x, *qparams(0.05, -3), panels, bias, 40, *EPILOGUES[epilogue]((*rows, 40)))
    got, want = static_cpu.linear_static(*arguments), static_reference.linear_static(*arguments)
    assert got.shape == want.shape
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 0, 1, 2)], ids=str)
def test_codes_keep_strides(order, dtype):
    x = (
        torch.randn(2, 3, 4, 5)
        .permute(order)
        .contiguous()
        .permute([order.index(d) for d in range(4)])
        .to(dtype)
    )
    x[1, 2, 0, 0], x[1, 1, 1, 1] = math.nan, math.inf
    scale, zero = qparams(0.01, -7)
    got, finite = static_cpu.quantize_static(x, scale, zero)
    want, expected = static_reference.quantize_static(x, scale, zero)
    assert torch.equal(got, want)
    assert torch.equal(finite, expected)
    assert got.stride() == x.stride()
    back = static_cpu.dequantize_static(got, scale, zero, dtype)
    assert torch.equal(back, static_reference.dequantize_static(got, scale, zero, dtype))
    assert back.stride() == x.stride()


def test_codes_of_anything():
    scale, zero = qparams(0.01, -7)
    for x in (
        torch.tensor(0.5),
        torch.randn(0, 3),
        torch.randn(6, 4)[::2],
        torch.randn(1, 5).expand(3, 5),
        torch.randn(9),
    ):
        got, finite = static_cpu.quantize_static(x, scale, zero)
        want, expected = static_reference.quantize_static(x, scale, zero) if x.numel() else (got, finite)
        assert torch.equal(got, want.reshape(x.shape))
        assert torch.equal(finite, expected)
        assert static_cpu.dequantize_static(got, scale, zero, torch.float32).shape == x.shape


def test_what_does_not_fit_is_named():
    scale, zero = qparams(0.05, 0)
    panels = packed(4, 72, 1)

    def conv(x=None, *, x_scale=scale, x_zero=zero, n=4, bias=None, epilogue=None):
        x = codes(1, 8, 5, 5) if x is None else x
        epilogue = epilogue or EPILOGUES["codes"](())
        shape = ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, False, (0, 0))
        static_cpu.conv_static(x, x_scale, x_zero, panels, bias, n, *shape, *epilogue)

    add = EPILOGUES["add"]((1, 4, 5, 5))
    for said, call in {
        "x: expected dtype int8": lambda: conv(torch.zeros(1, 8, 5, 5)),
        "panels: expected a weight [4, 45]": lambda: conv(codes(1, 5, 5, 5)),
        "x_scale: expected dtype float32": lambda: conv(x_scale=scale.double()),
        "x_scale: expected length 1": lambda: conv(x_scale=scale.repeat(2)),
        "x_zero: expected dtype int8": lambda: conv(x_zero=zero.int()),
        "panels: expected a weight [5, 72]": lambda: conv(n=5),
        "bias: expected 4 elements, got 3": lambda: conv(bias=torch.zeros(3)),
        "addend: expected shape (1, 4, 5, 5), got (1, 4, 5, 4)": lambda: conv(
            epilogue=(codes(1, 4, 5, 4), *add[1:])
        ),
        "addend_scale, addend_zero: expected both": lambda: conv(epilogue=(add[0], None, *add[2:])),
        "out_zero: expected 1 elements, got 2": lambda: conv(epilogue=(*add[:6], zero.repeat(2), None)),
    }.items():
        with pytest.raises(ValueError, match=re.escape(said)):
            call()


@pytest.mark.parametrize(("groups", "transposed"), [(1, False), (24, False), (6, False), (2, True)])
def test_integers_alone_are_their_definition(groups, transposed):
    n, extra = 24, (0, 0)
    panels = packed(n, 9 * 24 // groups, groups)
    shape = ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), groups, transposed, extra)
    multiplier = torch.randint(2**30, 2**31 - 1, (n,), dtype=torch.int32)
    shift = torch.randint(38, 45, (n,), dtype=torch.int32)
    zeros = torch.tensor([3], dtype=torch.int8), torch.tensor([-7], dtype=torch.int8)
    for bias in (None, torch.randint(-1000, 1000, (n,), dtype=torch.int32)):
        arguments = (
            codes(2, 24, 7, 6), zeros[0], panels, bias, n, *shape, multiplier, shift, zeros[1], -7, 127,
        )  # fmt: skip
        got, want = static_cpu.conv_fixed_static(*arguments), static_reference.conv_fixed_static(*arguments)
        assert got.unique().numel() > 5
        assert torch.equal(got, want)
