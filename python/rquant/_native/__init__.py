"""The native module on numpy arrays and torch tensors: the only place that takes addresses.

What is here by name needs no torch; its kernels for CUDA, int8 codes and observers have modules of their own.
"""

from .arrays import BFLOAT16, Array, NotFinite
from .matrix import (
    QMatrix,
    Range,
    dequantize,
    encode,
    half_quadratic,
    pack_codes,
    parameters,
    qparams,
    quantize,
    ranges,
    search,
    unpack_codes,
)
from .panels import (
    gather_rows,
    gemm_i32,
    has_wide_scales,
    is_native,
    linear,
    linear_outliers,
    pack,
    quantize_rows,
    share_openmp,
    unpack,
)

__all__ = [
    "BFLOAT16",
    "Array",
    "NotFinite",
    "QMatrix",
    "Range",
    "dequantize",
    "encode",
    "gather_rows",
    "gemm_i32",
    "half_quadratic",
    "has_wide_scales",
    "is_native",
    "linear",
    "linear_outliers",
    "pack",
    "pack_codes",
    "parameters",
    "qparams",
    "quantize",
    "quantize_rows",
    "ranges",
    "search",
    "share_openmp",
    "unpack",
    "unpack_codes",
]
