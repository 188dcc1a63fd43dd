"""float8 codes to floats on the emulated driver: every code there is, as torch reads it."""

import cuda_emulator
import pytest

pytestmark = pytest.mark.skipif(cuda_emulator.COMPILER is None, reason="no C++ compiler for the emulator")


def test_every_code_is_what_torch_reads(cuda_driver, cubins):
    """Denormals, both zeros, infinity and NaN too; a scale of 1 or of a power of two changes no digit."""
    cuda_emulator.run(
        """
for kind, dtype in ((43, torch.float8_e4m3fn), (52, torch.float8_e5m2)):
    codes = torch.arange(256, dtype=torch.uint8).reshape(4, 64)
    for scale in (1.0, 2.0**-3):
        q = _native.QMatrix(codes, torch.full((4, 1), scale), None, 64, kind, -1)
        for to in (torch.float32, torch.float16, torch.bfloat16):
            before = launches()
            got = native_cuda.dequantize(q, torch.empty(4, 64, dtype=to))
            assert launches() == before + 1
            want = (codes.view(dtype).float() * scale).to(to)
            assert torch.equal(got.isnan(), want.isnan())
            assert torch.equal(got.nan_to_num(7, 8, 9), want.nan_to_num(7, 8, 9)), (kind, scale, to)
            assert torch.equal(got.signbit()[~got.isnan()], want.signbit()[~want.isnan()])
""",
        cuda_driver,
        cubins,
    )


def test_a_product_dequantizes_by_the_kernel_and_multiplies_by_torch(cuda_driver, cubins):
    cuda_emulator.run(
        """
import warnings; warnings.simplefilter("error")  # by design: nothing is said
for kind, group in ((43, -1), (52, 32), (43, 7)):
    q = _native.quantize(torch.randn(20, 64), kind, group, True)
    for dtype, most in ((torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
        x, bias = torch.randn(3, 64).to(dtype), torch.randn(20).to(dtype)
        x[1, 0] = -torch.inf
        before = launches()
        got = cuda.linear_canonical(x, q, bias, False)
        assert launches() == before + 1 and got.dtype == dtype
        want = reference.linear_canonical(x.double(), q, bias, False)
        assert got[1].isnan().all()
        off = (got[::2].double() - want[::2]).norm() / want[::2].norm()
        assert off < most, (kind, dtype, off)
try:
    native_cuda.linear(x, q, None, got)
except ValueError as error:
    assert "bits: expected 8, 4 or 2, got 43" in str(error), error
else:
    raise AssertionError
""",
        cuda_driver,
        cubins,
    )
