"""Rows of an embedding, and columns that are multiplied in float beside int8, on the emulator."""

import cuda_emulator
import pytest
from test_cuda_kernels import COMPARE

pytestmark = pytest.mark.skipif(cuda_emulator.COMPILER is None, reason="no C++ compiler for the emulator")


def test_rows_of_an_embedding(cuda_driver, cubins):
    """Ids in any order, twice or never; outside of the rows they give NaN."""
    cuda_emulator.run(
        COMPARE
        + """
for (kind, group, symmetric), (n, k) in itertools.product(
    ((8, -1, True), (8, 20, False), (4, 64, False), (2, 32, True)), ((7, 160), (5, 37))
):
    q = weight(n, k, kind, group, symmetric)
    ids = torch.tensor([[0, n - 1, 2], [2, n, -1], [1, 2**31 - 1, -(2**31)]])
    inside = (ids >= 0) & (ids < n)
    for dtype, index in itertools.product((torch.float32, torch.float16, torch.bfloat16), (torch.int64, torch.int32)):
        out = torch.zeros(3, 3, k, dtype=dtype)
        native_cuda.gather_rows(q, ids.to(index), out)
        want = reference.embedding_canonical(ids[inside], q, dtype)
        assert torch.equal(out[inside], want) and out[~inside].isnan().all(), (kind, group, n, k, dtype)
before = launches()
rows = cuda.embedding_canonical(ids[inside], q, torch.float16)
assert launches() == before + 1 and torch.equal(rows, reference.embedding_canonical(ids[inside], q, torch.float16))
native_cuda.gather_rows(q, torch.tensor([2**32 + 1, 2]), out := torch.zeros(2, k))
assert out[0].isnan().all() and out[1].isfinite().all()
native_cuda.gather_rows(q, torch.empty(0, dtype=torch.int64), torch.empty(0, k))
try:
    native_cuda.gather_rows(q, torch.ones(2), out)
except ValueError as error:
    assert "ids: expected int64 or int32, got torch.float32" in str(error)
else:
    raise AssertionError
""",
        cuda_driver,
        cubins,
    )


def test_outliers_are_found(cuda_driver, cubins):
    """As the reference finds them: rows with NaN or infinity do not count, and what is not an outlier loses no precision."""
    cuda_emulator.run(
        """
for (m, k), dtype in itertools.product(((1, 40), (5, 700), (9, 1500)), (torch.float32, torch.float16, torch.bfloat16)):
    x = torch.randn(m, k)
    for column in (0, 13, k - 1):
        x[torch.randint(m, ()), column] = -20
    if m > 5:
        x[2, 7], x[2, 8], x[3, 9], x[3, 10] = torch.inf, 100, torch.nan, -100
    x = x.to(dtype)
    for threshold in (6.0, 2.5, 1000.0, x[m - 1, 3].abs().item()):
        flags, columns, count = torch.zeros(k, dtype=torch.uint8), torch.full((k,), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        native_cuda.find_outliers(x, threshold, flags, columns, count)
        want = reference.outlier_columns(x, threshold)
        assert columns[: count.item()].tolist() == want and flags.nonzero().flatten().tolist() == want, (m, k, threshold)
        codes, scale = torch.empty(m, k, dtype=torch.int8), torch.empty(m)
        native_cuda.quantize_rows(x, None, codes, scale, flags)
        rest = x.clone()
        rest[:, want] = torch.where(rest[:, want].isfinite(), 0, rest[:, want])
        known, of_rows = reference.quantize_rows(rest)
        assert torch.equal(codes, known) and torch.equal(scale.nan_to_num(-1), of_rows.nan_to_num(-1))
try:
    native_cuda.find_outliers(x, 0.0, flags, columns, count)
except ValueError as error:
    assert "threshold: expected a number above 0, got 0" in str(error)
else:
    raise AssertionError
""",
        cuda_driver,
        cubins,
    )


def test_outliers_beside_int8_are_the_cpu_s_bits(cuda_driver, cubins):
    cuda_emulator.run(
        COMPARE
        + """
from rquant._backends import cuda_outliers
def product(x, q, bias, threshold, chosen, kept):
    before = launches()
    out = cuda_outliers.linear_outliers_canonical(x, q, bias, threshold, chosen, kept)
    assert launches() == before + (3 if threshold is None else 5)
    return out

for m, (n, k), (kind, group, symmetric) in itertools.product(
    (1, 7, 14, 40), ((70, 256), (20, 97)), ((8, -1, True), (8, -1, False), (4, 32, False), (2, -1, True))
):
    q = weight(n, k, kind, group, symmetric)
    x, bias = torch.randn(m, k), torch.randn(n) if m % 2 else None
    x[:, ::5] *= 9
    if m > 1:
        x[1, 10] = torch.nan
    for threshold, chosen, kept in ((15.0, None, None), (500.0, None, None), (None, [3, 17, 90], None), (None, [0, 5], torch.randn(n, 2))):
        for dtype in (torch.float32, torch.float16):
            got = product(x.to(dtype), q, bias, threshold, chosen, kept)
            want = cpu.linear_outliers_canonical(x.to(dtype), q, bias, threshold, chosen, kept)
            assert torch.equal(got.isnan(), want.isnan())
            if group == -1 or m > 8:
                assert torch.equal(got.nan_to_num(0), want.nan_to_num(0)), (m, n, k, kind, threshold, chosen, dtype)
            else:
                assert off(got.nan_to_num(0), want.nan_to_num(0).double()) < MOST[dtype]
""",
        cuda_driver,
        cubins,
    )
