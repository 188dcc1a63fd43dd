"""One comparison with plain torch for each op, as strict as it gets: outputs between guards, memory around scales NaN.

Runs in the process that cuda_mutants.py starts, after cuda_emulator.BEGIN, on the emulator's device. A case of an op is
`CHECKS[op](kind, half)`: the bits of codes and the type of activations. A new op gets a case here.
"""

import itertools

import torch

from rquant import _native
from rquant._backends import cpu, reference
from rquant._native import cuda as native_cuda

SHAPES = ((70, 320), (17, 132), (9, 97))
ROWS = (3, 8, 14, 50)


def guarded(shape, dtype, around=77):
    """An uninitialized tensor in the middle of a known one."""
    size = 1
    for s in shape:
        size *= s
    whole = torch.full((size + 128,), around, dtype=dtype)
    return whole[64 : 64 + size].view(shape), whole


def intact(whole):
    """Whether nothing was written beyond the end."""
    assert (whole[:64] == 77).all()
    assert (whole[-64:] == 77).all()


def of_long_k(kind):
    """A matrix of which each of a block's warps takes more chunks of k than it has asynchronous copies under way."""
    return _native.quantize(torch.randn(9, 3300) + 0.3, kind, 128, False)


def weights(kind):
    """Quantized matrices of every form: ragged ones, with and without zero points, in groups and not."""
    torch.manual_seed(1)
    for (n, k), symmetric, group in itertools.product(SHAPES, (True, False), (32, -1)):
        q = _native.quantize(torch.randn(n, k) + 0.3, kind, group, symmetric)
        scale, _ = guarded(tuple(q.scale.shape), q.scale.dtype, torch.nan)
        q = q._replace(scale=scale.copy_(q.scale))
        yield q
        if not symmetric and n == SHAPES[1][0]:
            yield q._replace(zero_point=torch.randn_like(q.scale).half() * 20)  # fractions


def dequantize(kind, half):
    for q in weights(kind):
        floats = reference.dequantize_canonical(q, torch.float32)
        for dtype in (torch.float32, half):
            out, whole = guarded(tuple(floats.shape), dtype)
            native_cuda.dequantize(q, out)
            assert torch.equal(out, floats.to(dtype))
            intact(whole)


def float8(kind, half):
    """Every code of both kinds."""
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(4, 64)
    for float_kind, dtype in itertools.product((43, 52), (torch.float32, half)):
        q = _native.QMatrix(codes, torch.rand(4, 1) + 0.5, None, 64, float_kind, -1)
        out, whole = guarded((4, 64), dtype)
        native_cuda.dequantize(q, out)
        want = reference.dequantize_canonical(q, dtype)
        torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True)
        intact(whole)
        native_cuda.gather_rows(q, torch.tensor([3, 0, 1, 2]), out)
        torch.testing.assert_close(out, want[[3, 0, 1, 2]], rtol=0, atol=0, equal_nan=True)


def bitpack(kind, half):
    for q in weights(kind):
        codes = _native.unpack_codes(q)
        out, whole = guarded(tuple(codes.shape), torch.int8)
        assert torch.equal(native_cuda.unpack_codes(q, out), codes)
        intact(whole)
        wild = torch.randint(-128, 128, codes.shape, dtype=torch.int8)  # out of range: their neighbours stay
        half_range = 2 ** (kind - 1)
        tame = ((wild.int() + half_range) % 2**kind - half_range).to(torch.int8)
        for some, want in ((codes, q.codes), (wild, _native.pack_codes(tame, kind))):
            out, whole = guarded(tuple(q.codes.shape), torch.uint8)
            assert torch.equal(native_cuda.pack_codes(some, kind, out), want)
            intact(whole)


def quantize_rows(kind, half):
    torch.manual_seed(2)
    for m, k in ((4, 320), (3, 2)):
        x = torch.randn(m, k) * torch.rand(m, 1)
        x[0] = 0
        for bad, dtype in ((0.5, half), (torch.inf, torch.float32), (-torch.inf, half), (torch.nan, half)):
            x[1, 1] = bad
            odd = torch.rand(m) + 0.01  # infinity, and NaN of no usual bits
            odd[-2:] = torch.tensor([0x7F800000, 0x7FC0000F], dtype=torch.int32).view(torch.float32)
            for given in (None, torch.rand(1) + 0.01, torch.rand(m) + 0.01, odd):
                (codes, whole), (scale, more) = guarded((m, k), torch.int8), guarded((m,), torch.float32)
                native_cuda.quantize_rows(x.to(dtype), given, codes, scale)
                want = reference.quantize_rows(x.to(dtype), given)
                assert torch.equal(codes, want[0])
                torch.testing.assert_close(scale, want[1].expand(m), rtol=0, atol=0, equal_nan=True)
                intact(whole)
                intact(more)


def gather_rows(kind, half):
    for q in weights(kind):
        n = len(q.codes)
        ids = torch.tensor([[0, n - 1, 2], [2, n, -1]])
        inside = (ids >= 0) & (ids < n)
        for dtype, index in ((torch.float32, torch.int64), (half, torch.int32)):
            out, whole = guarded((2, 3, q.cols), dtype)
            native_cuda.gather_rows(q, ids.to(index), out)
            assert torch.equal(out[inside], reference.embedding_canonical(ids[inside], q, dtype))
            assert out[~inside].isnan().all()
            intact(whole)


def close(got, want, most):
    assert (got - want).norm() / want.norm() < most


def linear(kind, half):
    """Of few rows and of many, by each kernel that takes them, and with k in parts; a row with infinity is NaN."""
    most = {torch.float16: 5e-4, torch.bfloat16: 4e-3, torch.float32: 1e-6}
    for q in weights(kind):
        floats = reference.dequantize_canonical(q, torch.float32).double()
        n = len(floats)
        for m, dtype in [*((m, half) for m in ROWS), (3, torch.float32), (8, torch.float32)]:
            x, bias = torch.randn(m, q.cols).to(dtype), torch.randn(n).to(dtype)
            want = x.double() @ floats.T + bias.double()
            ways = [{}]
            if dtype == half:
                ways += [{"parts": torch.full((2, m, n), torch.nan)}] + [{"small": False}] * (m == 8)
            for way in ways:
                out, whole = guarded((m, n), dtype)
                native_cuda.linear(x, q, bias, out, **way)
                close(out, want, most[dtype])
                intact(whole)
                if q.cols == SHAPES[1][1]:
                    bad, again = x.clone(), torch.empty_like(out)
                    bad[1, -1] = torch.inf
                    native_cuda.linear(bad, q, bias, again, **way)
                    assert again[1].isnan().all()
                    assert torch.equal(again[2:], out[2:])

    q = of_long_k(kind)
    x = torch.randn(3, q.cols).to(half)
    out, whole = guarded((3, len(q.codes)), half)
    native_cuda.linear(x, q, None, out)
    close(out, x.double() @ reference.dequantize_canonical(q, torch.float32).double().T, most[half])
    intact(whole)


def linear_old(kind, half):
    """Without tensor cores."""
    for q in weights(kind):
        floats = reference.dequantize_canonical(q, torch.float32).double()
        for m in (1, 8):
            x, bias = torch.randn(m, q.cols).to(half), torch.randn(len(floats)).to(half)
            out, whole = guarded((m, len(floats)), half)
            native_cuda.linear(x, q, bias, out)
            close(out, x.double() @ floats.T + bias.double(), 5e-4 if half == torch.float16 else 4e-3)
            intact(whole)


def linear_int8(kind, half, rows=ROWS):
    """The CPU's bits, but for few rows of several groups; a bias for all rows, and one for each."""
    for q in weights(kind):
        n = len(q.codes)
        for m in rows:
            x, bias = torch.randn(m, q.cols).to(half), torch.randn(n).to(half)
            codes, scale = reference.quantize_rows(x)
            out, whole = guarded((m, n), torch.float32)
            native_cuda.linear_int8(codes, scale, q, bias, out)
            want = cpu.linear_canonical(x.float(), q, bias, True)
            if m > 8 or q.group_size == -1:
                assert torch.equal(out, want)
            close(out, want, 1e-6)
            intact(whole)
            each = torch.randn(m, n)
            native_cuda.linear_int8(codes, scale, q, each, out)
            plain = cpu.linear_canonical(x.float(), q, None, True)
            close(out, plain + each, 1e-6)
            intact(whole)
    q = of_long_k(kind)
    x = torch.randn(3, q.cols)
    out, whole = guarded((3, len(q.codes)), torch.float32)
    native_cuda.linear_int8(*reference.quantize_rows(x), q, None, out)
    close(out, cpu.linear_canonical(x, q, None, True), 1e-6)
    intact(whole)


def linear_int8_old(kind, half):
    """Without tensor cores."""
    linear_int8(kind, half, (3, 8))


def outliers(kind, half):
    for m, k in ((5, 700), (1, 40)):
        x = torch.randn(m, k)
        x[0, [0, 13, k - 1]] = -20
        if m > 1:
            x[2, 7], x[2, 8], x[3, 9], x[3, 10] = torch.inf, 100, torch.nan, -100
        x = x.to(half)
        for threshold in (6.0, x[m - 1, 3].abs().item(), 1000.0):
            (flags, whole), (columns, more) = guarded((k,), torch.uint8), guarded((k,), torch.int32)
            flags.zero_()
            count, last = guarded((1,), torch.int32)
            native_cuda.find_outliers(x, threshold, flags, columns, count)
            want = reference.outlier_columns(x, threshold)
            assert columns[: count.item()].tolist() == want
            assert flags.nonzero().flatten().tolist() == want
            for one in (whole, more, last):
                intact(one)
            codes, scale = torch.empty(m, k, dtype=torch.int8), torch.empty(m)
            native_cuda.quantize_rows(x, None, codes, scale, flags)
            rest = x.clone()
            rest[:, want] = torch.where(rest[:, want].isfinite(), 0, rest[:, want])
            known, of_rows = reference.quantize_rows(rest)
            assert torch.equal(codes, known)
            torch.testing.assert_close(scale, of_rows, rtol=0, atol=0, equal_nan=True)


def outlier_products(kind, half):
    for q in weights(kind):
        floats = reference.dequantize_canonical(q, torch.float32)
        n = len(floats)
        chosen = sorted({0, 1, 33, q.cols - 1, *range(40, 40 + n // 3)})
        listed = torch.full((q.cols,), 2**30, dtype=torch.int32)
        listed[: len(chosen)] = torch.tensor(chosen)
        for m in (3, 50):
            x, bias, count = torch.randn(m, q.cols).to(half), torch.randn(n), torch.tensor([len(chosen)])
            for kept in (None, torch.randn(n, len(chosen)).to(half)):
                weight = floats[:, chosen] if kept is None else kept
                columns = listed if kept is None else listed[: len(chosen)].clone()
                out, whole = guarded((m, n), torch.float32)
                native_cuda.outlier_products(x, columns, count.int(), kept, q, bias, out)
                close(out, x[:, chosen].double() @ weight.double().T + bias.double(), 1e-6)
                intact(whole)


CHECKS = {
    check.__name__: check
    for check in (
        dequantize,
        float8,
        bitpack,
        quantize_rows,
        gather_rows,
        linear,
        linear_old,
        linear_int8,
        linear_int8_old,
        outliers,
        outlier_products,
    )
}
ENVIRONMENT = {op: {"RQUANT_EMULATOR_ARCH": "75"} for op in ("linear_old", "linear_int8_old")}
