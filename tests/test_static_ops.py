"""The ops of statically quantized activations: schemas and fakes, and their meaning in float."""

import math

import pytest
import torch
from torch.library import opcheck
from torch.nn import functional

from rquant import _native, _static_ops, optimize
from rquant._backends import static_reference

CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
NONE = (None, None, None, -math.inf, math.inf, None, None, torch.float32)


def params(scale: float, zero: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([scale]), torch.tensor([zero], dtype=torch.int8)


def codes(*shape: int, seed: int = 0) -> torch.Tensor:
    q = torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    return q.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else q


def packed(n: int, k: int, kind: int = 8, group: int = -1, symmetric: bool = True):
    w = torch.randn(n, k, generator=torch.Generator().manual_seed(1))
    q = optimize.by_arguments(w, kind, group, symmetric, "minmax")
    return _native.pack(q), _native.dequantize(q, torch.empty(n, k))


def calls():
    a, z, out = params(0.05, -3), params(0.02, 7), params(0.1, -20)
    image, row = codes(2, 8, 9, 7), codes(3, 5, 32)
    panels, _ = packed(12, 32)
    fused = (codes(3, 5, 12), *z, 0.0, 6.0, *out, None)
    yield "linear_static", (row, *a, panels, torch.randn(12), 12, *fused)
    yield "linear_static", (row, *a, panels, None, 12, *NONE)
    *weight, _, kind, group = optimize.by_arguments(torch.randn(12, 32), 4, 7, False, "minmax")
    yield "linear_canonical_static", (row, *a, *weight, kind, group, torch.randn(12), *fused)
    kernels, _ = packed(6, 2 * 3 * 4, 4, 5, False)
    shape = ((2, 3), (2, 1), (1, 0, 0, 2), (1, 2), 2, False, (0, 0))
    yield "conv_static", (image, *a, kernels, torch.randn(6), 6, *shape, *NONE)
    *weight, _, kind, group = optimize.by_arguments(torch.randn(6, 2 * 3 * 4), 4, 5, False, "minmax")
    yield "conv_canonical_static", (image, *a, *weight, kind, group, torch.randn(6), 6, *shape, *NONE)
    each = torch.tensor([0.05, 0.1])
    yield "conv_static", (image, each, a[1], kernels, None, 6, *shape, *NONE[:5], *out, None)
    flipped = ((2, 3), (2, 1), (1, 0, 1, 0), (1, 2), 2, True, (1, 0))
    yield "conv_static", (image, *a, kernels, None, 6, *flipped, *NONE)
    whole, _ = packed(6, 2 * 3 * 4)
    multiplier, shifts = torch.arange(1, 7, dtype=torch.int32) << 26, torch.full((6,), 38, dtype=torch.int32)
    for bias in (None, torch.arange(6, dtype=torch.int32) * 100):
        yield "conv_fixed_static", (image, a[1], whole, bias, 6, *shape, multiplier, shifts, out[1], -20, 100)
    x = torch.randn(2, 8, 9, 7).contiguous(memory_format=torch.channels_last)
    yield "quantize_static", (x, *a)
    yield "quantize_static", (x.half()[0, 0, 0], *a)
    yield "quantize_images_static", (x, *a)
    yield "quantize_images_static", (x[:, :3].contiguous(), *a)
    yield "fake_quantize_static", (x.bfloat16(), *a)
    yield "fake_quantize_static", (x, torch.rand(8) + 0.01, codes(8), 1)
    yield "inside_range_static", (x, *a)
    yield "dequantize_static", (image, *a, torch.float16)
    yield "add_static", (image, *a, codes(2, 8, 9, 7, seed=3), *z, 0.0, math.inf, *out)
    yield "requantize_static", (image, *a, -1.0, 1.0, *out)
    yield "concat_static", ([image, image], [a[0], out[0]], [a[1], out[1]], 1, *out)
    for ceil in (False, True):
        yield "max_pool_static", (image, (3, 2), (2, 2), (1, 0), (1, 1), ceil)
        yield "avg_pool_static", (image, *a, (3, 2), (2, 2), (1, 0), ceil, ceil, None if ceil else 5, *out)
    yield "adaptive_avg_pool_static", (image, *a, (4, 3), *out)
    yield "layer_norm_static", (torch.randn(3, 32), None, None, torch.randn(32), None, 1e-5, 32, *out)
    yield "layer_norm_static", (row, *a, None, torch.randn(32), 1e-5, 32, *out)
    yield "affine_static", (image, *a, torch.rand(8), torch.randn(8), 0.0, math.inf, *out, None)
    yield "affine_static", (image, *a, torch.rand(8), torch.randn(8), 0.0, 1.0, None, None, torch.float16)
    yield "lookup_static", (image, codes(256))


def test_every_op_passes_opcheck():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("rquant::")}
    seen = set()
    for name, arguments in calls():
        for op in (name, f"{name}_python") if f"rquant::{name}_python" in registered else (name,):
            seen.add(f"rquant::{op}")
            opcheck(getattr(torch.ops.rquant, op).default, arguments, test_utils=CHECKS)
    assert {name for name in registered if "_static" in name} == seen


def test_the_kernels_give_the_references_integers():
    for name, arguments in calls():
        if "canonical" in name:  # the same function; compared with panels' below
            continue
        reference = getattr(static_reference, name.replace("_images", ""))  # only memory differs
        got, want = getattr(_static_ops, name)(*arguments), reference(*arguments)
        for one, other in zip(*((t if isinstance(t, tuple) else (t,)) for t in (got, want)), strict=True):
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            assert torch.equal(one, other), name


def test_a_canonical_weight_gives_what_its_panels_give():
    seen = set()
    for name, arguments in calls():
        if "canonical" in name:
            seen.add(name)
            x, scale, zero, *rest = arguments
            codes, scales, zeros, kind, group, bias, *others = rest
            cols = codes.shape[1] * 8 // kind if x.dim() == 4 else x.shape[-1]
            panels = _native.pack(_native.QMatrix(codes, scales, zeros, cols, kind, group))
            n = [] if x.dim() == 4 else [codes.shape[0]]
            want = getattr(_static_ops, name.replace("_canonical", ""))(
                x, scale, zero, panels, bias, *n, *others
            )
            got = getattr(_static_ops, name)(x, scale, zero, *rest)
            assert got.dtype == want.dtype
            assert torch.equal(got, want)
    assert seen == {"linear_canonical_static", "conv_canonical_static"}


@pytest.mark.parametrize(("groups", "transposed"), [(1, False), (2, False), (8, False), (1, True), (2, True)])
@pytest.mark.parametrize("scheme", [(8, -1, True), (4, 16, False), (2, 7, False)], ids=str)
def test_convolution_is_torchs_of_what_the_codes_mean(groups, transposed, scheme):
    n = 8
    panels, weight = packed(n, 3 * 2 * 8 // groups, *scheme)
    scale, zero = params(0.05, -30)
    x = codes(2, 8, 9, 7)
    bias = torch.randn(n)
    shape = ((3, 2), (2, 1), (1, 0, 1, 0), (1, 2), groups, transposed, (1, 0) if transposed else (0, 0))
    got = _static_ops.conv_static(x, scale, zero, panels, bias, n, *shape, *NONE)
    floats = _static_ops.dequantize_static(x, scale, zero, torch.float32)
    weight = weight.reshape(n, 3, 2, -1).permute(0, 3, 1, 2)
    if transposed:
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        want = functional.conv_transpose2d(floats, weight, bias, (2, 1), (1, 0), (1, 0), groups, (1, 2))
    else:
        want = functional.conv2d(floats, weight, bias, (2, 1), (1, 0), (1, 2), groups)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("scheme", [(8, -1, True), (4, 16, False)], ids=str)
@pytest.mark.parametrize("added", [False, True])
def test_codes_are_those_of_the_floats_but_for_the_rounding_of_folded_scales(scheme, added):
    panels, _ = packed(64, 256, *scheme)
    x, bias, out = codes(500, 256), torch.randn(64), params(0.8, -20)
    addend = (codes(500, 64, seed=1), *params(0.3, 5)) if added else (None, None, None)
    given = (x, *params(0.05, -30), panels, bias, 64, *addend, -5.0, 60.0)
    got = _static_ops.linear_static(*given, *out, None)
    floats = _static_ops.linear_static(*given, None, None, torch.float32)
    off = (got.int() - _static_ops.quantize_static(floats, *out)[0]).abs()
    assert got.unique().numel() > 60
    assert off.max() <= 1
    assert (off > 0).float().mean() < 1e-3


def test_codes_beyond_the_range_are_clipped_and_samples_that_are_not_finite_are_said():
    x = torch.tensor([[0.0, 1.0, 400.0], [-400.0, math.nan, 0.05]])
    q, finite = _static_ops.quantize_static(x, *params(0.1, -20))
    assert q.tolist() == [[-20, -10, 127], [-127, -20, -20]]  # 0.05 is half a step: to even
    assert finite.tolist() == [True, False]
