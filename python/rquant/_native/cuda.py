"""The native module's kernels on CUDA tensors: addresses, checked, and the stream that torch is on.

Tensors are contiguous and on one device. Nothing waits for the device, and outputs are the caller's.
"""

from functools import lru_cache
from typing import Any

from .. import _rquant
from .matrix import QMatrix

Tensor = Any

_DTYPES = {
    "torch.float32": _rquant.FLOAT32,
    "torch.float16": _rquant.FLOAT16,
    "torch.bfloat16": _rquant.BFLOAT16,
}


def place(tensor: Tensor) -> tuple[int, int]:
    """Device index and handle of torch's current stream there."""
    if tensor.device.type != "cuda":
        raise ValueError(f"expected a CUDA tensor, got one on {tensor.device}")
    import torch

    index = tensor.device.index
    return index, torch._C._cuda_getCurrentRawStream(index)


def is_float(dtype: Any) -> bool:
    """Whether kernels know this dtype."""
    return str(dtype) in _DTYPES


def aligned(tensor: Tensor) -> Tensor:
    """The tensor contiguous and at a multiple of 16 bytes; itself if it is."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _address(tensor: Tensor | None, argument: str, dtype: str | None = None, size: int | None = None) -> int:
    """Of `tensor`, once dtype and number of elements are what a kernel will read; 0 for None."""
    if tensor is None:
        return 0
    if not tensor.is_contiguous():
        raise ValueError(f"{argument}: expected a contiguous tensor, got strides {tuple(tensor.stride())}")
    if dtype is not None and str(tensor.dtype) != f"torch.{dtype}":
        raise ValueError(f"{argument}: expected dtype {dtype}, got {tensor.dtype}")
    if size is not None and tensor.numel() != size:
        shape = tuple(tensor.shape)
        raise ValueError(f"{argument}: expected {size} elements, got {tensor.numel()} (shape {shape})")
    return tensor.data_ptr()  # type: ignore[no-any-return]


def _code(tensor: Tensor | None, argument: str) -> int:
    if tensor is None:
        return _rquant.FLOAT32
    if not is_float(tensor.dtype):
        raise ValueError(f"{argument}: expected float32, float16 or bfloat16, got {tensor.dtype}")
    return _DTYPES[str(tensor.dtype)]


def _weight(q: QMatrix) -> tuple[int, int, int, int, int, int, int, int, int]:
    n, k = q.codes.shape[0], q.cols
    group = max(k, 1) if q.group_size == -1 else q.group_size
    count = n * -(-k // group)
    codes = _address(q.codes, "codes", "uint8", n * _rquant.row_bytes(k, q.kind))
    scale_dtype = _code(q.scale, "scale")
    if scale_dtype == _rquant.BFLOAT16:
        raise ValueError("scale: expected float32 or float16, got bfloat16")
    scale = _address(q.scale, "scale", size=count)
    kind, zero = _rquant.ZP_NONE, 0
    if q.zero_point is not None:
        integer = str(q.zero_point.dtype) == "torch.uint8"
        kind = _rquant.ZP_UINT8 if integer else _rquant.ZP_FLOAT16
        zero = _address(q.zero_point, "zero_point", "uint8" if integer else "float16", count)
    return codes, n, k, q.kind, group, scale, scale_dtype, zero, kind


def dequantize(q: QMatrix, out: Tensor) -> Tensor:
    """`S * (q - Z)` into `out`, `[rows, cols]` of float32, float16 or bfloat16; returns it."""
    if tuple(out.shape) != (q.codes.shape[0], q.cols):
        raise ValueError(f"out: expected shape {(q.codes.shape[0], q.cols)}, got {tuple(out.shape)}")
    _rquant.cuda_dequantize(*place(out), _weight(q), _address(out, "out"), _code(out, "out"))
    return out


def gather_rows(q: QMatrix, ids: Tensor, out: Tensor) -> Tensor:
    """Rows `ids` (int64 or int32, any shape) of `S * (q - Z)` into `out` `[..., cols]` of any float dtype; returns it.

    A row of NaN for an id outside of [0, rows): nobody waits for the device to say that there is one.
    """
    if str(ids.dtype) not in ("torch.int64", "torch.int32"):
        raise ValueError(f"ids: expected int64 or int32, got {ids.dtype}")
    chosen = _address(ids, "ids"), ids.element_size(), ids.numel()
    to = _address(out, "out", size=ids.numel() * q.cols)
    _rquant.cuda_gather_rows(*place(out), _weight(q), *chosen, to, _code(out, "out"))
    return out


def quantize_rows(
    x: Tensor, given: Tensor | None, codes: Tensor, scale: Tensor, skip: Tensor | None = None
) -> None:
    """int8 `codes` of x `[m, k]` and float32 `scale` `[m]`; under `given` float32 scales, 1 or `m`, if there are any.

    Columns that `skip`, uint8 `[k]`, flags count as 0, but where they are NaN or infinite.
    """
    m, k = x.shape
    at, dtype = _address(x, "x"), _code(x, "x")
    scales = _address(given, "scale", "float32"), 0 if given is None else given.numel()
    outputs = _address(codes, "codes", "int8", m * k), _address(scale, "scale", "float32", m)
    _rquant.cuda_quantize_rows(
        *place(x), at, dtype, m, k, *scales, _address(skip, "skip", "uint8", k), *outputs
    )


def pack_codes(codes: Tensor, kind: int, out: Tensor) -> Tensor:
    """int8 codes `[rows, cols]` into canonical bytes `out`; returns it. Codes are not checked against the type's range."""
    n, k = codes.shape
    to = _address(out, "out", "uint8", n * _rquant.row_bytes(k, kind))
    _rquant.cuda_bitpack(*place(codes), True, _address(codes, "codes", "int8"), to, n, k, kind)
    return out


def unpack_codes(q: QMatrix, out: Tensor) -> Tensor:
    """The signed codes, int8 `[rows, cols]`, into `out`; returns it."""
    n = q.codes.shape[0]
    codes = _address(q.codes, "codes", "uint8", n * _rquant.row_bytes(q.cols, q.kind))
    to = _address(out, "out", "int8", n * q.cols)
    _rquant.cuda_bitpack(*place(out), False, codes, to, n, q.cols, q.kind)
    return out


def _products(x: Tensor, q: QMatrix, bias: Tensor | None, out: Tensor) -> tuple[int, int, int, int]:
    """Rows, address and dtype of the bias, address of the output; sizes checked."""
    m, n = x.shape[0], q.codes.shape[0]
    if tuple(x.shape) != (m, q.cols):
        raise ValueError(f"x: expected shape [m, {q.cols}], got {tuple(x.shape)}")
    added = _address(bias, "bias", size=n if bias is None or bias.dim() == 1 else m * n), _code(bias, "bias")
    return m, *added, _address(out, "out", size=m * n)


def linear(
    x: Tensor,
    q: QMatrix,
    bias: Tensor | None,
    out: Tensor,
    small: bool | None = None,
    parts: Tensor | None = None,
) -> None:
    """`out[m, n] = x[m, k] @ dequantize(q).T + bias`; x and `out` of one dtype.

    float16 and bfloat16 of any m, but of at most 8 before compute capability 8.0; float32 of at most 8. `small`: by the kernel
    for at most 8 rows, or by tiles; by default as m is. `parts`, float32 `[count, m, n]` to write to, has `count` blocks
    share each k; how many, `count_parts` says.
    """
    m, bias_at, bias_dtype, to = _products(x, q, bias, out)
    if out.dtype != x.dtype:
        raise ValueError(f"out: expected {x.dtype}, got {out.dtype}")
    count = 1 if parts is None else parts.shape[0]
    shared = _address(parts, "parts", "float32", count * out.numel()), count
    at = _address(x, "x"), _code(x, "x")
    _rquant.cuda_linear(*place(x), *at, m, _weight(q), bias_at, bias_dtype, to, small, *shared)


def count_parts(x: Tensor, q: QMatrix, small: bool | None = None) -> int:
    """In how many parts `linear` should take k, so that every multiprocessor has work: 1 means without `parts`."""
    return _count_parts(place(x)[0], x.shape[0], _code(x, "x"), q.codes.shape[0], q.cols, q.kind, small)


_count_parts = lru_cache(maxsize=4096)(_rquant.cuda_linear_parts)


def linear_int8(x: Tensor, scale: Tensor, q: QMatrix, bias: Tensor | None, out: Tensor) -> None:
    """The same of int8 x under float32 scales `[m]` of its rows, by exact int32 sums; `out` of any float dtype.

    A bias `[m, n]` is of each row its own, as `outlier_products` makes it.
    """
    each: bool = bias is not None and bias.dim() == 2
    m, bias_at, bias_dtype, to = _products(x, q, bias, out)
    rows = _address(x, "x", "int8"), _address(scale, "scale", "float32", m)
    end = to, _code(out, "out")
    _rquant.cuda_linear_int8(*place(x), *rows, m, _weight(q), bias_at, bias_dtype, each, *end)


def find_outliers(x: Tensor, threshold: float, flags: Tensor, columns: Tensor, count: Tensor) -> None:
    """The columns of x `[m, k]` in which some |x| of a row without NaN or infinity is at least `threshold`.

    Each is flagged with 1 in `flags`, uint8 `[k]` of zeros, and listed in ascending order in `columns`, int32 `[k]`; their
    number goes to `count`, int32 `[1]`. The host does not learn which they are.
    """
    m, k = x.shape
    outputs = _address(flags, "flags", "uint8", k), _address(columns, "columns", "int32", k)
    at, dtype = _address(x, "x"), _code(x, "x")
    _rquant.cuda_find_outliers(
        *place(x), at, dtype, m, k, threshold, *outputs, _address(count, "count", "int32", 1)
    )


def outlier_products(
    x: Tensor,
    columns: Tensor,
    count: Tensor,
    weight: Tensor | None,
    q: QMatrix,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    """`out[m, n] = x[:, columns] @ dequantize(q)[:, columns].T + bias` in float32, of the first `count[0]` of `columns`.

    `columns` and `count` are int32 and on the device, in order and in range. `weight` `[n, columns]`, if given, has the
    columns' weights, one each for all of `columns`, and `count[0]` is their number. What it leaves in `out`, float32, is the
    bias of `linear_int8`.
    """
    m, bias_at, bias_dtype, to = _products(x, q, bias, out)
    kept = (
        _address(weight, "column_weight", size=columns.numel() * q.codes.shape[0]),
        _code(weight, "column_weight"),
    )
    chosen = _address(columns, "columns", "int32"), _address(count, "count", "int32", 1), *kept
    _address(out, "out", "float32")
    at, dtype = _address(x, "x"), _code(x, "x")
    _rquant.cuda_outlier_products(*place(x), at, dtype, m, chosen, _weight(q), bias_at, bias_dtype, to)
