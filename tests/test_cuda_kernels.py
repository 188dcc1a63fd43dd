"""The CUDA kernels' own sources, launched by the product's own code, on the emulator: against the CPU and plain torch."""

import os

import cuda_emulator
import pytest

FULL = bool(os.environ.get("RQUANT_CUDA_CHECK"))

pytestmark = pytest.mark.skipif(cuda_emulator.COMPILER is None, reason="no C++ compiler for the emulator")


FORMS = "((8, -1, True), (8, -1, False), (8, 64, True), (4, 64, False), (4, 32, True), (4, -1, True), (2, 32, False), (2, 96, False))"
COMPARE = """
def weight(n, k, kind, group, symmetric):
    return _native.quantize(torch.randn(n, k), kind, group, symmetric)

def off(got, want):
    return ((got.double() - want).norm() / want.norm()).item()

# rounding of the output, and of bfloat16's weights where they are dequantized
MOST = {torch.float16: 4e-4, torch.bfloat16: 3e-3, torch.float32: 1e-6}
"""


def test_dequantize_equals_the_reference(cuda_driver, cubins):
    cuda_emulator.run(
        COMPARE
        + """
for (kind, group, symmetric), (n, k) in itertools.product(
    ((8, -1, True), (8, 20, False), (4, 64, False), (4, 7, True), (2, 32, False), (2, 5, False), (43, -1, True), (52, 7, True)),
    ((3, 160), (5, 37), (1, 1)),
):
    for q in (weight(n, k, kind, group, symmetric), weight(n, k, kind, group, symmetric)._replace(zero_point=None)):
        fraction = q._replace(zero_point=torch.randn_like(q.scale).half())
        for q in (q, fraction, q._replace(scale=q.scale.float())):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                before = launches()
                got = cuda.dequantize_canonical(q, dtype)
                assert launches() == before + 1
                assert torch.equal(got, reference.dequantize_canonical(q, dtype)), (kind, group, n, k, dtype)
""",
        cuda_driver,
        cubins,
    )


def test_codes_pack_and_unpack(cuda_driver, cubins):
    cuda_emulator.run(
        """
for kind, (n, k) in itertools.product((8, 4, 2), ((3, 64), (5, 37), (1, 1))):
    half = 2 ** (kind - 1)
    codes = torch.randint(-half, half, (n, k), dtype=torch.int8)
    packed = _native.pack_codes(codes, kind)
    assert torch.equal(native_cuda.pack_codes(codes, kind, torch.empty_like(packed)), packed), (kind, n, k)
    q = _native.QMatrix(packed, None, None, k, kind, -1)
    assert torch.equal(native_cuda.unpack_codes(q, torch.empty_like(codes)), codes), (kind, n, k)
""",
        cuda_driver,
        cubins,
    )


def test_rows_quantize_to_the_same_codes(cuda_driver, cubins):
    """Also rows of zeros, of denormals, with NaN or infinity; and under given scales."""
    cuda_emulator.run(
        """
x = torch.randn(7, 300) * torch.tensor([1, 0, 1e-30, 1e30, 1, 1, 1e-42])[:, None]
x[4, 7], x[5, 299] = torch.inf, torch.nan
given = torch.tensor([0.1, 1, 1, 1e28, 1, 1, torch.nan])
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for scale in (None, given, given[:1]):
        got = cuda._quantize_rows(x.to(dtype), scale)
        want = reference.quantize_rows(x.to(dtype), scale)
        assert torch.equal(got[0], want[0]), dtype
        torch.testing.assert_close(got[1], want[1], rtol=0, atol=0, equal_nan=True)
""",
        cuda_driver,
        cubins,
    )


SHAPES = "((64, 256), (40, 200), (17, 132), (70, 97), (1, 1024))"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("rows", [(1, 3, 8), (9, 16), (17, 70)], ids=["small", "tiled16", "tiled64"])
def test_float_products(cuda_driver, cubins, rows, dtype):
    """Against float64, on shapes that fill no tile: rows of k that begin at 16, 4 and 1 bytes; three kinds of zero points."""
    forms = FORMS if FULL or dtype == "float16" else "((4, 64, False), (4, -1, True))"
    cuda_emulator.run(
        COMPARE
        + f"""
dtype = torch.{dtype}
for m, (n, k), form in itertools.product({rows}, {SHAPES}, {forms}):
    q = weight(n, k, *form)
    if q.zero_point is not None and n % 2:
        q = q._replace(zero_point=torch.randn_like(q.scale).half())
    x, bias = torch.randn(m, k).to(dtype), torch.randn(n).to(dtype) if k % 2 else None
    before = launches()
    got = cuda.linear_canonical(x, q, bias, False)
    assert launches() - before in (1, 2)  # of a long k in parts, their sum
    want = x.double() @ reference.dequantize_canonical(q, torch.float32).double().T
    want = want if bias is None else want + bias.double()
    assert off(got, want) < MOST[dtype], (m, n, k, form, off(got, want))
assert state()[2] and not state()[3], "bank conflicts"
""",
        cuda_driver,
        cubins,
    )


@pytest.mark.parametrize("rows", [(9, 16), (17, 70)], ids=["tiled16", "tiled64"])
def test_integer_products_are_the_cpu_s_bits(cuda_driver, cubins, rows):
    cuda_emulator.run(
        COMPARE
        + f"""
for m, (n, k), form in itertools.product({rows}, {SHAPES}, {FORMS}):
    q = weight(n, k, *form)
    if q.zero_point is not None and n % 2:
        q = q._replace(zero_point=torch.randn_like(q.scale).half() * 20)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x, bias = torch.randn(m, k).to(dtype), torch.randn(n).to(dtype) if k % 2 else None
        before = launches()
        got = cuda.linear_canonical(x, q, bias, True)
        assert launches() == before + 2
        assert torch.equal(got, cpu.linear_canonical(x, q, bias, True)), (m, n, k, form, dtype)
assert state()[2] and not state()[3], "bank conflicts"
""",
        cuda_driver,
        cubins,
    )


def test_the_full_range_of_codes_and_sums(cuda_driver, cubins):
    """Codes that quantization never makes (-128, -8, -2), and the largest sums."""
    cuda_emulator.run(
        """
for kind, integer in itertools.product((8, 4, 2), (False, True)):
    for m in (2, 20):
        k = 1024
        q = _native.QMatrix(torch.zeros(3, _rquant.row_bytes(k, kind), dtype=torch.uint8), torch.ones(3, 1), None, k, kind, -1)
        q.codes[1] = 255
        for zero in (None, torch.tensor([[2**kind - 1], [0], [0]], dtype=torch.uint8)):
            x = torch.full((m, k), 127.0).to(torch.bfloat16 if kind == 4 else torch.float16) / (1 if integer else 127)
            moved = q._replace(zero_point=zero)
            got = cuda.linear_canonical(x.float() if integer else x, moved, None, integer)
            want = reference.linear_canonical(x.float(), moved, None, integer)
            assert torch.equal(got.float(), want.to(got.dtype).float()), (kind, integer, m, got, want)
""",
        cuda_driver,
        cubins,
    )


def test_rows_with_nan_or_infinity_are_nan_and_no_others(cuda_driver, cubins):
    cuda_emulator.run(
        COMPARE
        + """
for m, integer, bad in itertools.product((3, 12, 40, 130), (False, True), (torch.nan, torch.inf, -torch.inf)):
    q = weight(20, 64, 4, 32, True)
    x = torch.randn(m, 64).half()
    want = cuda.linear_canonical(x, q, None, integer)
    x[1, 63] = bad
    got = cuda.linear_canonical(x, q, None, integer)
    assert got[1].isnan().all()
    rest = torch.arange(m) != 1
    assert torch.equal(got[rest], want[rest])
""",
        cuda_driver,
        cubins,
    )


def test_the_order_of_threads_changes_nothing(cuda_driver, cubins):
    """0 is forward, 1 backward, others random: what a missing barrier would show."""
    script = (
        COMPARE
        + """
for (kind, group, symmetric), m in itertools.product(((8, -1, True), (4, 64, False), (2, 32, False)), (5, 14, 40)):
    q, x = weight(40, 300, kind, group, symmetric), torch.randn(m, 300).half()
    for integer in (False, True):
        print(cuda.linear_canonical(x, q, None, integer).view(torch.int16).tolist())
"""
    )
    outputs = {
        cuda_emulator.run(script, cuda_driver, cubins, RQUANT_EMULATOR_ORDER=o) for o in ("0", "1", "7")
    }
    assert len(outputs) == 1


def test_what_has_no_kernel_goes_to_torch(cuda_driver, cubins):
    """Groups that are no multiple of 32, float8, float64; many rows and float32 are dequantized by the kernel first."""
    cuda_emulator.run(
        COMPARE
        + """
import warnings; warnings.simplefilter("ignore")
def product(q, x, integer, launched):
    before = launches()
    got = cuda.linear_canonical(x, q, None, integer)
    assert launches() == before + launched, (q[3:], x.dtype, integer, launches() - before)
    want = reference.linear_canonical(x.double(), q, None, integer)
    assert off(got, want) < 3 * MOST.get(x.dtype, 1e-6)

odd = weight(20, 64, 4, 20, False)
product(odd, torch.randn(3, 64).half(), False, 1)
product(odd, torch.randn(3, 64), True, 0)
product(weight(20, 64, 4, 32, False), torch.randn(3, 64), False, 1)
product(weight(20, 64, 4, 32, False), torch.randn(129, 64).bfloat16(), False, 1)  # an estimate
product(weight(20, 64, 4, 32, False), torch.randn(3, 64).double(), False, 0)
product(weight(20, 64, 43, -1, True), torch.randn(3, 64).half(), False, 1)
view = torch.empty(20 * 32 + 3, dtype=torch.uint8)[3:].view(20, 32)  # not at a multiple of 16
q = weight(20, 64, 4, 32, False)
product(q._replace(codes=view.copy_(q.codes)), torch.randn(3, 65).half()[:, 1:], False, 1)
assert cuda.linear_canonical(torch.randn(2, 0, 64).half(), q, None, False).shape == (2, 0, 20)
""",
        cuda_driver,
        cubins,
    )
