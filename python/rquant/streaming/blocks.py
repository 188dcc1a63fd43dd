"""One weight quantized a block of rows at a time: the same bits as all at once, for no row looks at another.

All that rows have in common is whether float16 holds every scale of their weight.
"""

from collections.abc import Iterator

import numpy as np

from .. import _native
from .._native import Array, NotFinite
from ..casting import cast
from ..io.safetensors_header import Spec
from ..scheme import HALF_QUADRATIC, Scheme

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


def scales(matrix: Array, scheme: Scheme) -> tuple[Array | None, Array | None]:
    """Scales (float32 or float16) and zero points (uint8 or float16, None if symmetric) `[n, groups]` of the whole weight.

    Those that `rquant.optimize` names; a cast has none. Raises NotFinite with the index in memory order, so that of the
    stored tensor.
    """
    n, k = matrix.shape
    lo, hi = (np.empty((n, scheme.groups(k)), np.float32) for _ in range(2))
    for i, j, block in _blocks(matrix):
        try:
            lo[i:j], hi[i:j] = _native.ranges(block, scheme.group_size)
            if scheme.qtype.is_cast:
                cast(block, scheme.qtype)
        except NotFinite as bad:
            row, column = i + bad.index // k, bad.index % k
            transposed = matrix.strides[0] < matrix.strides[1]
            bad.index = column * n + row if transposed else row * k + column
            raise
    if scheme.qtype.is_cast:
        return None, None
    if scheme.optimizer == "absmax":
        np.maximum(-lo, hi, out=hi)
        np.negative(hi, out=lo)
    half = not scheme.per_channel
    if scheme.optimizer in ("mse", "hqq"):
        whole, _ = _native.qparams(lo, hi, scheme.kind, scheme.symmetric, half)
        half = whole.dtype == np.float16
        for i, j, block in _blocks(matrix):
            _native.search(block, scheme.kind, scheme.symmetric, scheme.group_size, half, lo[i:j], hi[i:j])
    scale, zero = _native.qparams(lo, hi, scheme.kind, scheme.symmetric, half)
    if scheme.optimizer == "hqq":
        zero = np.empty(scale.shape, np.float16)
        for i, j, block in _blocks(matrix):
            method = scheme.kind, scheme.group_size, *HALF_QUADRATIC
            zero[i:j] = _native.half_quadratic(block, scale[i:j], *method)
    return scale, zero


def codes(matrix: Array, scheme: Scheme, scale: Array | None, zero: Array | None) -> Iterator[Array]:
    """Canonical bytes, uint8 `[rows, row bytes]`, or what a cast makes, block after block."""
    for i, j, block in _blocks(matrix):
        if scale is None:
            yield cast(block, scheme.qtype)
            continue
        z = None if zero is None else zero[i:j]
        yield _native.encode(block, scale[i:j], z, scheme.kind, scheme.group_size).codes
