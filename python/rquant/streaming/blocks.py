"""One weight quantized a block of rows at a time: the same bits as all at once, for no row looks at another."""

from collections.abc import Iterator

import numpy as np

from .. import _native
from .._native import Array, NotFinite
from ..safetensors_header import Spec
from ..scheme import Scheme

BLOCK = 16 * 2**20  # bytes: much more than a call costs, much less than a tensor
_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def as_matrix(data: Array, spec: Spec, transposed: bool) -> Array:
    """Bytes as the weight `[n, k]`, a view; bfloat16 as its bits."""
    matrix = data.view(_DTYPES[spec.dtype]).reshape(spec.shape)
    return matrix.T if transposed else matrix


def _blocks(matrix: Array) -> Iterator[tuple[int, int, Array]]:
    n, k = matrix.shape
    step = max(1, BLOCK // (k * matrix.itemsize))
    for i in range(0, n, step):
        block = np.ascontiguousarray(matrix[i : i + step])
        yield i, min(i + step, n), block.view(_native.BFLOAT16) if block.dtype.kind == "u" else block


def scales(matrix: Array, scheme: Scheme) -> tuple[Array, Array | None]:
    """Scales (float32 or float16) and zero points (uint8, None if symmetric) `[n, groups]` of the whole weight.

    Raises NotFinite with the index in memory order, so that of the stored tensor.
    """
    n, k = matrix.shape
    lo, hi = (np.empty((n, scheme.groups(k)), np.float32) for _ in range(2))
    for i, j, block in _blocks(matrix):
        try:
            lo[i:j], hi[i:j] = _native.ranges(block, scheme.group_size)
        except NotFinite as bad:
            row, column = i + bad.index // k, bad.index % k
            transposed = matrix.strides[0] < matrix.strides[1]
            raise NotFinite(column * n + row if transposed else row * k + column) from None
    return _native.qparams(lo, hi, scheme.kind, scheme.symmetric, half=not scheme.per_channel)


def codes(matrix: Array, scheme: Scheme, scale: Array, zero: Array | None) -> Iterator[Array]:
    """Canonical bytes, uint8 `[rows, row bytes]`, block after block."""
    for i, j, block in _blocks(matrix):
        z = None if zero is None else zero[i:j]
        yield _native.encode(block, scale[i:j], z, scheme.kind, scheme.group_size).codes
