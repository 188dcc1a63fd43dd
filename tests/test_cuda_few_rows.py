"""Kernels for 1 to 8 rows, and products whose k several blocks share, on the emulator."""

import cuda_emulator
import pytest
from test_cuda_kernels import COMPARE, FORMS, SHAPES

pytestmark = pytest.mark.skipif(cuda_emulator.COMPILER is None, reason="no C++ compiler for the emulator")


@pytest.mark.parametrize("arch", ["90", "75"], ids=["tensor cores", "none"])
def test_integer_products(cuda_driver, cubins, arch):
    """Of one group a row the CPU's bits; of several its value within float32's rounding."""
    cuda_emulator.run(
        COMPARE
        + f"""
def check(m, n, k, form, dtype):
    q = weight(n, k, *form)
    if q.zero_point is not None and n % 2:
        q = q._replace(zero_point=torch.randn_like(q.scale).half() * 20)
    x, bias = torch.randn(m, k).to(dtype), torch.randn(n).to(dtype) if k % 2 else None
    before = launches()
    got = cuda.linear_canonical(x, q, bias, True)
    assert launches() == before + 2
    wide = x.float()
    want = cpu.linear_canonical(wide, q, bias, True)
    if form[1] in (-1, k):
        assert torch.equal(got, want.to(dtype)), (m, n, k, form, dtype)
    else:
        assert off(got, want.double()) < MOST[dtype], (m, n, k, form, off(got, want.double()))

for m, (n, k), form in itertools.product((1, 3, 8), {SHAPES}, {FORMS}):
    check(m, n, k, form, torch.float32)
for dtype in (torch.float16, torch.bfloat16):
    check(3, 40, 200, (4, -1, True), dtype)
check(2, 17, 2240, (4, 32, False), torch.float32)
check(2, 17, 4196, (8, -1, False), torch.float32)
assert not state()[3], "bank conflicts"
""",
        cuda_driver,
        cubins,
        RQUANT_EMULATOR_ARCH=arch,
    )


def test_a_bias_for_each_row(cuda_driver, cubins):
    cuda_emulator.run(
        COMPARE
        + """
for m in (3, 12, 40):
    q, x, bias = weight(20, 64, 4, -1, True), torch.randn(m, 64), torch.randn(m, 20)
    codes, scale = reference.quantize_rows(x)
    rows = [torch.empty(m, 20) for _ in range(m)]
    for i in range(m):
        native_cuda.linear_int8(codes, scale, q, bias[i].contiguous(), rows[i])
    got = torch.empty(m, 20)
    native_cuda.linear_int8(codes, scale, q, bias, got)
    assert torch.equal(got, torch.stack([rows[i][i] for i in range(m)]))
""",
        cuda_driver,
        cubins,
    )


SIMT = """
def product(m, n, k, form, dtype):
    q = weight(n, k, *form)
    if q.zero_point is not None and n % 2:
        q = q._replace(zero_point=torch.randn_like(q.scale).half() * 20)
    x, bias = torch.randn(m, k).to(dtype), torch.randn(n).to(dtype) if k % 2 else None
    out = torch.full((m, n), torch.nan, dtype=dtype)
    native_cuda.linear(x, q, bias, out)
    want = x.double() @ reference.dequantize_canonical(q, torch.float32).double().T
    want = want if bias is None else want + bias.double()
    assert off(out, want) < MOST[dtype], (m, n, k, form, off(out, want))
    assert native_cuda.count_parts(x, q) == 1 or dtype != torch.float32
"""


def test_without_tensor_cores(cuda_driver, cubins):
    """Float32 on any GPU, and float16 and bfloat16 on an old one."""
    cuda_emulator.run(
        COMPARE
        + SIMT
        + f"""
for m, (n, k), form in itertools.product((1, 3, 8), {SHAPES}, {FORMS}):
    product(m, n, k, form, torch.float32)
product(2, 5, 1600, (2, 96, False), torch.float32)
q, x = weight(20, 64, 4, 32, True), torch.randn(3, 64)
out, want = torch.empty(3, 20), torch.empty(3, 20)
native_cuda.linear(x, q, None, want)
for bad in (torch.nan, torch.inf):
    x[1, 63] = bad
    native_cuda.linear(x, q, None, out)
    assert out[1].isnan().all() and torch.equal(out[::2], want[::2])
""",
        cuda_driver,
        cubins,
    )
    cuda_emulator.run(
        COMPARE
        + SIMT
        + f"""
for m, (n, k), form, dtype in itertools.product((1, 8), {SHAPES}[2:4], {FORMS}, (torch.float16, torch.bfloat16)):
    product(m, n, k, form, dtype)
try:
    product(9, 20, 64, (4, 32, True), torch.float16)
except ValueError as error:
    assert "x: expected at most 8 rows of float32, or before compute capability 8.0, got 9" in str(error)
else:
    raise AssertionError
""",
        cuda_driver,
        cubins,
        RQUANT_EMULATOR_ARCH="75",
    )


def test_blocks_that_share_k(cuda_driver, cubins):
    """In any number of parts, also more than there are steps, the same value; and the same bits in any order of threads."""
    script = (
        COMPARE
        + """
for (kind, group, symmetric), m, count in itertools.product(
    ((8, -1, True), (4, 64, False), (2, 96, True)), (1, 5, 14, 40), (2, 3, 7)
):
    n, k = 24, 520
    q, x, bias = weight(n, k, kind, group, symmetric), torch.randn(m, k).half(), torch.randn(n).half()
    out, parts = torch.full((m, n), torch.nan).half(), torch.full((count, m, n), torch.nan)
    before = launches()
    native_cuda.linear(x, q, bias, out, parts=parts)
    assert launches() == before + 2
    want = x.double() @ reference.dequantize_canonical(q, torch.float32).double().T + bias.double()
    assert off(out, want) < 4e-4, (kind, group, m, count, off(out, want))
    print(out.view(torch.int16).tolist())
    x[0, 3] = torch.inf
    native_cuda.linear(x, q, bias, out, parts=parts)
    assert out[0].isnan().all() and out[1:].isfinite().all()
"""
    )
    outputs = {cuda_emulator.run(script, cuda_driver, cubins, RQUANT_EMULATOR_ORDER=o) for o in ("0", "7")}
    assert len(outputs) == 1


def test_in_how_many_parts(cuda_driver, cubins):
    """The emulated GPU has 132 multiprocessors: enough tiles need no parts, nor does a short k."""
    cuda_emulator.run(
        """
def parts(m, n, k, dtype=torch.float16):
    q = _native.QMatrix(torch.empty(n, _rquant.row_bytes(k, 4), dtype=torch.uint8), torch.ones(n, 1), None, k, 4, -1)
    return native_cuda.count_parts(torch.empty(m, k, dtype=dtype), q)

assert parts(16, 4096, 4096) == 2 and parts(16, 1024, 4096) == 8 and parts(1, 256, 32768) == 8
assert parts(16, 8448, 4096) == 1 and parts(1, 4096, 4096) == 1 and parts(16, 64, 128) == 1
assert parts(1, 64, 32768, torch.float32) == 1
q, x = _native.quantize(torch.randn(20, 2048), 4, 32, True), torch.randn(12, 2048).half()
before = launches()
cuda.linear_canonical(x, q, None, False)
assert launches() == before + 2
q, x = _native.quantize(torch.randn(20, 64), 4, 32, True), torch.randn(3, 64)
for parts in (torch.empty(2, 3, 20), torch.empty(0, 3, 20)):
    try:
        native_cuda.linear(x, q, None, torch.empty(3, 20), parts=parts)
    except ValueError as error:
        assert "parts: expected 1, or memory for them and a kernel that shares k" in str(error)
    else:
        raise AssertionError
""",
        cuda_driver,
        cubins,
    )
