"""Operations on int8 codes between layers: the native kernels against their definitions in plain torch, in any memory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from rquant import _static_ops as ops
from rquant._backends import static_reference as reference

INF = math.inf


def params(scale: float, zero: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([scale]), torch.tensor([zero], dtype=torch.int8)


A, B, OUT = params(0.031, 5), params(0.017, -120), params(0.043, -12)


def codes(*shape: int, seed: int = 0) -> torch.Tensor:
    q = torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    return q.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else q


def value(q: torch.Tensor, p: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return ops.dequantize_static(q, *p, torch.float32)


def memories():
    """Tensors of one shape each, of every kind of memory."""
    image = codes(2, 5, 6, 7)
    yield image
    yield image.contiguous()
    yield image.permute(3, 1, 0, 2)
    yield image[:, 1:4, ::2]  # neither dense nor in order
    yield image[:1, :1].expand(2, 3, 6, 7)
    yield codes(0, 3, 4, 4)
    yield codes(3, 0)
    yield codes(17)
    yield codes(4, 33)


def same(got: torch.Tensor, want: torch.Tensor, like: torch.Tensor) -> None:
    """Equal, and in the memory order of `like` where that is dense."""
    assert got.dtype == want.dtype
    assert torch.equal(got, want)
    assert got.stride() == torch.empty_like(like).stride()


def test_elementwise_operations_take_any_memory():
    table = codes(256, seed=9)
    for x in memories():
        other = x.flip(tuple(range(x.dim()))).contiguous()
        given_add = (x, *A, other, *B, -1.0, 2.0, *OUT)
        same(ops.add_static(*given_add), reference.add_static(*given_add), x)
        same(
            ops.requantize_static(x, *A, 0.0, INF, *OUT),
            reference.requantize_static(x, *A, 0.0, INF, *OUT),
            x,
        )
        same(ops.lookup_static(x, table), reference.lookup_static(x, table), x)
        floats = x.float() / 20
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            v = floats.to(dtype)
            same(ops.fake_quantize_static(v, *OUT), reference.fake_quantize_static(v, *OUT), v)
            same(ops.inside_range_static(v, *OUT), reference.inside_range_static(v, *OUT), v)
        if x.dim() > 1:
            mul, add = torch.linspace(-2, 2, x.shape[1]), torch.linspace(-1, 0.5, x.shape[1])
            given_affine = (x, *A, mul, add, -1.0, INF, *OUT, None)
            same(ops.affine_static(*given_affine), reference.affine_static(*given_affine), x)
            given_affine = (x, *A, mul, add, -INF, 2.0, None, None, torch.bfloat16)
            same(ops.affine_static(*given_affine), reference.affine_static(*given_affine), x)


def test_the_sum_of_relu_is_that_of_the_floats():
    a, b = codes(2, 8, 6, 6), codes(2, 8, 6, 6, seed=1)
    got = ops.add_static(a, *A, b, *B, 0.0, INF, *OUT)
    want, _ = ops.quantize_static(torch.relu(value(a, A) + value(b, B)), *OUT)
    assert (got.int() - want.int()).abs().max() <= 1  # a fused multiply-add rounds once less
    assert (got == want).float().mean() > 0.999


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 0, 4, 5), (3, 4), (1, 7, 1, 1)], ids=str)
def test_concatenation(shape, dim):
    xs = [codes(*shape, seed=i) for i in range(3)]
    xs[1] = xs[1].contiguous()
    xs[2] = torch.cat([xs[2], xs[2]], dim)
    scales, zeros = zip(OUT, A, B, strict=True)
    got = ops.concat_static(xs, list(scales), list(zeros), dim, *OUT)
    want = reference.concat_static(xs, list(scales), list(zeros), dim, *OUT)
    assert torch.equal(got, want)
    assert got.is_contiguous(memory_format=torch.channels_last if got.dim() == 4 else torch.contiguous_format)
    assert torch.equal(got.narrow(dim, 0, shape[dim]), xs[0])  # under the same parameters: copied


def test_concatenation_of_flat_codes():
    x = codes(5)
    both = ops.concat_static([x, x], [A[0], OUT[0]], [A[1], OUT[1]], 0, *OUT)
    assert both.tolist() == ops.requantize_static(x, *A, -INF, INF, *OUT).tolist() + x.tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(0, 2), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.booleans(),
    st.booleans(),
)
def test_pooling_is_torchs(shape, kernel, stride, padding, dilation, ceil, include):
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    size = [
        ops.pooled_size(shape[2 + i], kernel[i], stride[i], padding[i], dilation[i], ceil) for i in (0, 1)
    ]
    x = codes(*shape)
    if min(size) < 1:
        with pytest.raises(ValueError, match="x: expected at least"):
            ops.max_pool_static(x, kernel, stride, padding, dilation, ceil)
        return
    got = ops.max_pool_static(x, kernel, stride, padding, dilation, ceil)
    if shape[0]:
        want = functional.max_pool2d(x.float(), kernel, stride, padding, dilation, ceil)
        assert torch.equal(got.float(), want.clamp(min=-127))  # what lies outside is below every code
        assert got.is_contiguous(memory_format=torch.channels_last)
    assert list(got.shape[2:]) == size
    if dilation == (1, 1) and shape[0]:
        for divisor in (None, 3):
            given = (x, *A, kernel, stride, padding, ceil, include, divisor, *OUT)
            got = ops.avg_pool_static(*given)
            assert torch.equal(got, reference.avg_pool_static(*given))
            want = functional.avg_pool2d(value(x, A), kernel, stride, padding, ceil, include, divisor)
            assert ((value(got, OUT) - want).abs() < 0.043 * 0.51).logical_or(got.abs() == 127).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 9), (10, 1), (0, 3)], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 16, 77])
def test_adaptive_means(size, channels):
    x = codes(2, channels, 7, 9)
    got = ops.adaptive_avg_pool_static(x.contiguous(), *A, size, *OUT)
    assert got.shape == (2, channels, *size)
    if 0 not in size:
        assert torch.equal(got, reference.adaptive_avg_pool_static(x, *A, size, *OUT))
        want = functional.adaptive_avg_pool2d(value(x, A), size)
        assert (value(got, OUT) - want).abs().max() < 0.043 * 0.51


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("features", [1, 7, 16, 100, 768])
def test_layer_norm(features, dtype):
    x = torch.randn(5, 3, features, generator=torch.Generator().manual_seed(features)) * 3 + 50
    x = codes(5, 3, features) if dtype == torch.int8 else x.to(dtype)
    weight, bias = torch.randn(features), torch.randn(features)
    given = A if dtype == torch.int8 else (None, None)
    for w, b in ((weight, bias), (None, None), (weight.half(), None)):
        arguments = (x, *given, w, b, 1e-5, features, *OUT)
        got = ops.layer_norm_static(*arguments)
        assert torch.equal(got, reference.layer_norm_static(*arguments))
        wide = (value(x, A) if dtype == torch.int8 else x).double()
        w, b = (None if t is None else t.double() for t in (w, b))
        want = functional.layer_norm(wide, (features,), w, b, 1e-5)
        error = (value(got, OUT).double() - want).abs()
        assert (error < 0.043 * (0.5 + 1e-5)).logical_or(got.abs() == 127).all()


def test_rows_that_are_not_finite_become_zero_and_leave_others_alone():
    x = torch.randn(4, 32)
    x[1, 3], x[2, 31] = math.nan, -INF
    got = ops.layer_norm_static(x, None, None, None, None, 1e-5, 32, *OUT)
    assert torch.equal(got, reference.layer_norm_static(x, None, None, None, None, 1e-5, 32, *OUT))
    assert (got[1:3] == -12).all()
    assert torch.equal(got[[0, 3]], ops.layer_norm_static(x[[0, 3]], None, None, None, None, 1e-5, 32, *OUT))


def test_fake_quantization_is_quantization_and_back():
    x = torch.linspace(-9, 9, 1001)
    codes, _ = ops.quantize_static(x, *OUT)
    assert torch.equal(ops.fake_quantize_static(x, *OUT), value(codes, OUT))
    odd = torch.tensor([math.nan, INF, -INF, 0.0, 1e38])
    got = ops.fake_quantize_static(odd, *params(0.5, 27))
    assert got[0].isnan()
    assert got[1:].tolist() == [50.0, -77.0, 0.0, 50.0]


def test_what_rounding_reaches_is_inside():
    # Z = 27: the codes are of steps -154..100; halves go to even
    x = torch.tensor([50.0, 50.25, 50.5, -77.0, -77.25, -77.5, math.nan, INF]) * 2
    inside = ops.inside_range_static(x, *params(1.0, 27))
    assert inside.tolist() == [True, True, False, True, True, False, False, False]


@pytest.mark.parametrize("dim", [0, 1, 3, -2])
def test_parameters_along_a_dimension(dim):
    x = torch.randn(4, 3, 5, 6) * 9
    scale = torch.rand(x.shape[dim]) * 0.1 + 0.01
    zero = torch.randint(-127, 128, scale.shape, dtype=torch.int8)
    for v in (
        x,
        x.contiguous(memory_format=torch.channels_last),
        x.bfloat16(),
        x.transpose(1, 2).transpose(1, 2),
    ):
        for name in ("fake_quantize_static", "inside_range_static"):
            got = getattr(ops, name)(v, scale, zero, dim)
            same(got, getattr(reference, name)(v, scale, zero, dim), v)


def test_what_does_not_fit_is_named():
    x, image = codes(4, 6), codes(1, 2, 4, 4)
    row = (None, None, None, None, 1e-5)
    for call, message in [
        (lambda: ops.add_static(x, *A, x[1:], *A, -INF, INF, *OUT), r"b: expected a's shape \(4, 6\), got \(3, 6\)"),
        (lambda: ops.add_static(x, *A, x.short(), *A, -INF, INF, *OUT), "b: expected dtype torch.int8, got torch.int16"),
        (lambda: ops.add_static(x, *A, x, A[0].double(), A[1], 0, 1, *OUT), "b_scale: expected dtype torch.float32"),
        (lambda: ops.requantize_static(x, *A, 1.0, 0.0, *OUT), "lo, hi: expected lo <= hi, got 1 and 0"),
        (lambda: ops.requantize_static(x, *params(0.0, 3), -INF, INF, *OUT), "x: expected a positive, finite scale"),
        (lambda: ops.requantize_static(x, *A, -INF, INF, *params(1.0, -128)), r"out: .* zero point in \[-127, 127\]"),
        (lambda: ops.requantize_static(x, torch.ones(2), A[1], 0, 1, *OUT), r"scale: expected 1 elements, got shape \(2,\)"),
        (lambda: ops.lookup_static(x, x), r"table: expected 256 elements, got shape \(4, 6\)"),
        (lambda: ops.concat_static([x, x[:1]], [A[0]] * 2, [A[1]] * 2, 1, *OUT), "xs: expected shapes equal but for dimension 1"),
        (lambda: ops.max_pool_static(x, (2, 2), (2, 2), (0, 0), (1, 1), False), r"x: expected 4 dimensions"),
        (lambda: ops.max_pool_static(image, (2,), (2, 2), (0, 0), (1, 1), False), r"kernel: expected two numbers"),
        (lambda: ops.max_pool_static(image, (2, 2), (2, 2), (2, 0), (1, 1), False), "padding: expected at most half"),
        (lambda: ops.max_pool_static(image, (5, 5), (2, 2), (0, 0), (1, 1), False), "x: expected at least 5 elements"),
        (lambda: ops.avg_pool_static(image, *A, (2, 2), (2, 2), (0, 0), False, True, 0, *OUT), "divisor: expected a positive"),
        (lambda: ops.layer_norm_static(x.float(), *row, 5, *OUT), "features: expected a divisor of x's 24 elements, got 5"),
        (lambda: ops.layer_norm_static(x, *row, 6, *OUT), "x: expected dtype float32, float16 or bfloat16, got torch.int8"),
        (lambda: ops.affine_static(x, *A, torch.ones(4), torch.ones(4), 0, 1, *OUT, None), "mul: expected one for each"),
        (lambda: ops.fake_quantize_static(x, *A), "x: expected dtype float32, float16 or bfloat16, got torch.int8"),
        (lambda: ops.fake_quantize_static(x.float(), torch.ones(4), torch.zeros(4).char()), "scale: expected 1 element"),
        (lambda: ops.fake_quantize_static(x.float(), torch.ones(4), torch.zeros(4).char(), 1), "scale: expected one for each"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


SCRIPT = """
import hashlib, torch, rquant
from rquant import _static_ops as ops
g = torch.Generator().manual_seed(3)
q = lambda *s: torch.randint(-127, 128, s, generator=g, dtype=torch.int8)
p = lambda s, z: (torch.tensor([s]), torch.tensor([z], dtype=torch.int8))
a, b, out = p(0.031, 5), p(0.017, -120), p(0.043, -12)
x = q(2, 70, 31, 33).contiguous(memory_format=torch.channels_last)
y = q(2, 70, 31, 33).contiguous(memory_format=torch.channels_last)
f, w, table = torch.randn(300, 257, generator=g), torch.randn(257, generator=g), q(256)
for threads in (1, 2):
    rquant.set_num_threads(threads)
    all = [
        ops.add_static(x, *a, y, *b, 0.0, 6.0, *out), ops.requantize_static(x, *a, 0.0, 6.0, *out),
        ops.lookup_static(x, table), ops.concat_static([x, y], [a[0], b[0]], [a[1], b[1]], 1, *out),
        ops.max_pool_static(x, (3, 3), (2, 2), (1, 1), (1, 1), False),
        ops.avg_pool_static(x, *a, (3, 3), (1, 1), (1, 1), False, True, None, *out),
        ops.adaptive_avg_pool_static(x, *a, (1, 1), *out),
        ops.layer_norm_static(f, None, None, w, w, 1e-5, 257, *out),
        ops.affine_static(x, *a, w[:70], w[:70], 0.0, 6.0, *out, None), ops.fake_quantize_static(f, *out),
    ]
    print(hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in all)).hexdigest())
"""
DIGESTS: set[str] = set()


def test_every_instruction_set_and_thread_count_gives_the_same_bits(isa):
    DIGESTS.update(isa(SCRIPT).split())
    assert len(DIGESTS) == 1
