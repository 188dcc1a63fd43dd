"""Every op in plain torch: the oracle in tests, and what runs on a device without kernels.

Written to be read. Integer products go through float64, which holds them exactly up to k = 2**38.
"""

import torch
from torch import Tensor

from .. import optimize
from .._native import QMatrix

_FLOAT8 = {43: torch.float8_e4m3fn, 52: torch.float8_e5m2}


def expand(groups: Tensor, cols: int, group_size: int) -> Tensor:
    """Per-group values `[rows, groups]` -> per-element `[rows, cols]`; the last group may be ragged."""
    if group_size == -1:
        return groups.expand(-1, cols)
    return groups.repeat_interleave(group_size, dim=1)[:, :cols]


def unpack_codes(codes: Tensor, cols: int, bits: int) -> Tensor:
    """Canonical bytes -> signed codes, int8 `[rows, cols]`."""
    shifts = torch.arange(0, 8, bits, device=codes.device, dtype=torch.uint8)
    fields = (codes.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return (fields.flatten(1)[:, :cols].to(torch.int16) - (1 << (bits - 1))).to(torch.int8)


def pack_codes(q: Tensor, bits: int) -> Tensor:
    """Signed codes -> canonical bytes, rows padded to 4 bytes with zero bits."""
    fields = (q.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    fields = torch.nn.functional.pad(fields, (0, -q.shape[1] % (32 // bits)))
    shifts = torch.arange(0, 8, bits, device=q.device, dtype=torch.uint8)
    fields = fields.unflatten(1, (fields.shape[1] * bits // 8, 8 // bits)) << shifts
    return fields.sum(-1, dtype=torch.uint8)


def values(codes: Tensor, cols: int, kind: int) -> Tensor:
    """Canonical bytes -> what the codes are before scale and zero point, float32 `[rows, cols]`."""
    if kind in _FLOAT8:
        return codes[:, :cols].contiguous().view(_FLOAT8[kind]).float()
    return unpack_codes(codes, cols, kind).float()


def zeros_of(scale: Tensor, zero_point: Tensor | None, kind: int) -> Tensor:
    """The plain Z in float32, whatever the storage."""
    if zero_point is None:
        return torch.zeros_like(scale, dtype=torch.float32)
    if zero_point.dtype == torch.uint8:
        return zero_point.float() - (1 << (kind - 1))
    return zero_point.float()


def largest(kind: int) -> float:
    """The largest value of a code."""
    return torch.finfo(_FLOAT8[kind]).max if kind in _FLOAT8 else (1 << (kind - 1)) - 1


def qparams(
    x: Tensor, kind: int, group_size: int, symmetric: bool, stored: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Min-max scales and zero points of `x` `[rows, cols]`, by the formulas of Jacob et al. 2018 (arXiv 1712.05877).

    `stored=False`: scales of the same values in float32 whatever they are stored as, which the values on a device decide.
    """
    size = max(x.shape[1], 1) if group_size == -1 else group_size
    # a ragged last group is filled with 0, which its range contains anyway
    grouped = torch.nn.functional.pad(x.double(), (0, -x.shape[1] % size)).unflatten(1, (-1, size))
    lo, hi = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    exact = torch.maximum(-lo, hi) / largest(kind) if symmetric else (hi - lo) / ((1 << kind) - 1)
    float32 = torch.finfo(torch.float32)
    scale = torch.where(exact == 0, 1.0, exact.clamp(0, float32.max).float().clamp(float32.tiny))
    if group_size != -1:
        half, normal = scale.half(), torch.finfo(torch.float16)
        fits = ((half >= normal.tiny) & (half <= normal.max)).all()
        if not stored:
            scale = torch.where(fits, half.float(), scale)
        elif fits:
            scale = half
    if symmetric:
        return scale, None
    qmin = -(1 << (kind - 1))
    zero = (qmin - lo / scale.double()).round().clamp(qmin, -qmin - 1)
    return scale, (zero - qmin).to(torch.uint8)


def _steps(x: Tensor, scale: Tensor, zero_point: Tensor | None, kind: int, group_size: int) -> Tensor:
    """`round(x / S) + Z` before clipping; a fractional Z is added before rounding."""
    s = expand(scale.float(), x.shape[1], group_size)
    z = expand(zeros_of(scale, zero_point, kind), x.shape[1], group_size)
    if zero_point is not None and zero_point.dtype == torch.float16:
        return (x.float() / s + z).round()
    return (x.float() / s).round() + z


def inside(x: Tensor, scale: Tensor, zero_point: Tensor | None, kind: int, group_size: int) -> Tensor:
    """Whether an element's code came of rounding alone, without clipping."""
    if kind in _FLOAT8:
        return (x.float() / expand(scale.float(), x.shape[1], group_size)).abs() <= largest(kind)
    lowest = -(1 << (kind - 1)) + (zero_point is None)
    steps = _steps(x, scale, zero_point, kind, group_size)
    return (steps >= lowest) & (steps <= (1 << (kind - 1)) - 1)


def quantize(x: Tensor, kind: int, group_size: int, symmetric: bool, stored: bool = True) -> QMatrix:
    """`q = clip(round_half_even(x / S) + Z)` of `x` `[rows, cols]`; symmetric leaves the lowest code out.

    `stored` as in `qparams`.
    """
    scale, zero = qparams(x, kind, group_size, symmetric, stored)
    if kind in _FLOAT8:
        q = x.float() / expand(scale.float(), x.shape[1], group_size)
        q = q.clamp(-largest(kind), largest(kind)).to(_FLOAT8[kind]).view(torch.uint8)
        codes = torch.nn.functional.pad(q, (0, -x.shape[1] % 4))
        return QMatrix(codes, scale, zero, x.shape[1], kind, group_size)
    lowest, highest = -(1 << (kind - 1)) + symmetric, (1 << (kind - 1)) - 1
    q = _steps(x, scale, zero, kind, group_size).clamp(lowest, highest).to(torch.int8)
    return QMatrix(pack_codes(q, kind), scale, zero, x.shape[1], kind, group_size)


def dequantize_canonical(q: QMatrix, dtype: torch.dtype) -> Tensor:
    """`S * (q - Z)` in float32, rounded once to `dtype`."""
    codes = values(q.codes, q.cols, q.kind)
    zeros = expand(zeros_of(q.scale, q.zero_point, q.kind), q.cols, q.group_size)
    return (expand(q.scale.float(), q.cols, q.group_size) * (codes - zeros)).to(dtype)


def row_scales(x: Tensor) -> Tensor:
    """`S = max|x| / 127` of each row of x `[..., k]`, in float32; a row of zeros gets 1."""
    most = x.float().abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1], dtype=torch.float32)
    return scale_of(most)


def scale_of(most: Tensor) -> Tensor:
    """The activation scale of rows whose largest magnitude is `most`, float32."""
    return torch.where(most == 0, 1.0, (most / 127).clamp(torch.finfo(torch.float32).tiny))


def quantize_rows(x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Symmetric int8 a row, by `row_scales` or given ones; a row with NaN or infinity, in it or as its scale, gets scale NaN
    and codes 0."""
    x = x.float()
    scale = row_scales(x) if scale is None else scale.reshape(-1).expand(x.shape[:-1])
    finite = x.isfinite().all(-1) & scale.isfinite()
    scale = torch.where(finite, scale, torch.nan)
    q = (x / scale.unsqueeze(-1)).round().clamp(-127, 127).nan_to_num(0)
    return q.to(torch.int8), scale


def chosen(x: Tensor, kind: int, group_size: int, symmetric: bool, optimizer: str) -> QMatrix:
    """By any optimizer, to compute with at once: min-max does not wait for the device; all others are the CPU's, so that
    they choose the same everywhere."""
    if optimizer == "minmax":
        return quantize(x, kind, group_size, symmetric, stored=False)
    q = optimize.by_arguments(x.cpu().contiguous(), kind, group_size, symmetric, optimizer)
    return q.map(lambda t: t.to(x.device))


def _integer_product(x: Tensor, w: QMatrix, scale: Tensor | None) -> Tensor:
    """`Sa * sum over groups of Sw * (sum(a * q) - Z * sum(a))` in float64 from the integers, x `[m, k]`."""
    a, row_scale = quantize_rows(x, scale)
    q = unpack_codes(w.codes, w.cols, w.kind).double()
    z = expand(zeros_of(w.scale, w.zero_point, w.kind), w.cols, w.group_size).double()
    weight = expand(w.scale, w.cols, w.group_size).double() * (q - z)
    return row_scale.double().unsqueeze(-1) * (a.double() @ weight.T)


def linear_canonical(
    x: Tensor, q: QMatrix, bias: Tensor | None, integer: bool, scale_of_x: Tensor | None = None
) -> Tensor:
    """x `[..., k]` -> `[..., n]` in both arithmetics; a row with NaN or infinity gives a row of NaN.

    `scale_of_x`: ready-made activation scales, float32, one a row or a single one for all.
    """
    rows = x.reshape(-1, q.cols)
    if integer:
        out = _integer_product(rows, q, scale_of_x)
    else:
        out = rows.double() @ dequantize_canonical(q, torch.float32).double().T
        out = torch.where(rows.isfinite().all(-1, keepdim=True), out, torch.nan)
    if bias is not None:
        out = out + bias.double()
    return out.to(x.dtype).reshape(*x.shape[:-1], q.codes.shape[0])


def outlier_mask(x: Tensor, threshold: float) -> Tensor:
    """bool `[k]`: columns of `x` `[m, k]` in which some |x| of a row without NaN or infinity is at least `threshold`."""
    size = x.float().abs()
    finite = size.isfinite().all(-1, keepdim=True)
    return ((size >= threshold) & finite).any(0)


def outlier_columns(x: Tensor, threshold: float) -> list[int]:
    """The indices of `outlier_mask`."""
    return outlier_mask(x, threshold).nonzero().flatten().tolist()  # type: ignore[no-any-return]


def linear_outliers_canonical(
    x: Tensor,
    q: QMatrix,
    bias: Tensor | None,
    threshold: float | None,
    columns: list[int] | None,
    column_weight: Tensor | None,
) -> Tensor:
    """LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339): the integer product of x without some columns, and those in
    float: `columns`, or what reaches `threshold`; their weights `column_weight` `[n, columns]`, or dequantized."""
    rows = x.reshape(-1, q.cols)
    if columns is None:
        columns = outlier_columns(rows, threshold or torch.inf)
    if column_weight is None:
        column_weight = dequantize_canonical(q, torch.float32)[:, columns]
    taken, rest = rows[:, columns].double(), rows.clone()
    rest[:, columns] = torch.where(rest[:, columns].isfinite(), 0, rest[:, columns])
    out = _integer_product(rest, q, None)
    out = out + taken @ column_weight.double().T
    out = torch.where(rows.isfinite().all(-1, keepdim=True), out, torch.nan)
    if bias is not None:
        out = out + bias.double()
    return out.to(x.dtype).reshape(*x.shape[:-1], q.codes.shape[0])


def linear_outliers_unfrozen(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kind: int,
    group_size: int,
    symmetric: bool,
    optimizer: str,
    threshold: float | None,
    columns: list[int] | None,
) -> Tensor:
    """Quantize the weight `[n, k]` anew and multiply; given columns take theirs from it as they are."""
    q = chosen(weight, kind, group_size, symmetric, optimizer)
    kept = None if columns is None else weight[:, columns]
    return linear_outliers_canonical(x, q, bias, threshold, columns, kept)


def round_rows(x: Tensor, threshold: float | None, columns: list[int] | None) -> Tensor:
    """Activations `[m, k]` as the integer product sees them: int8 and back, but for the columns in float."""
    if columns is None:
        mask = outlier_mask(x, threshold or torch.inf)
    else:
        mask = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
        mask[columns] = True
    codes, scale = quantize_rows(torch.where(mask, 0, x))
    return torch.where(mask, x, (codes * scale.unsqueeze(-1)).to(x.dtype))


def linear_unfrozen(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kind: int,
    group_size: int,
    symmetric: bool,
    optimizer: str,
    integer: bool,
) -> Tensor:
    """Quantize the weight `[n, k]` anew and multiply."""
    return linear_canonical(x, chosen(weight, kind, group_size, symmetric, optimizer), bias, integer)


def embedding_canonical(ids: Tensor, q: QMatrix, dtype: torch.dtype) -> Tensor:
    """Rows `ids` of the dequantized weight, `[..., dim]`."""
    rows = dequantize_canonical(q.map(lambda t: t[ids.reshape(-1)]), dtype)
    return rows.reshape(*ids.shape, q.cols)


def fake_quantize(weight: Tensor, kind: int, group_size: int, symmetric: bool, optimizer: str) -> Tensor:
    """Quantize and dequantize, of weight's dtype."""
    return dequantize_canonical(chosen(weight, kind, group_size, symmetric, optimizer), weight.dtype)


def inside_range(weight: Tensor, kind: int, group_size: int, symmetric: bool, optimizer: str) -> Tensor:
    """bool, of weight's shape: False where quantizing clips."""
    q = chosen(weight, kind, group_size, symmetric, optimizer)
    return inside(weight, q.scale, q.zero_point, kind, group_size)
