"""The native core's functions, as raw as they come: addresses, sizes and codes in, bytes out.

Nothing here knows a framework. Every address is that of C-contiguous CPU memory which the caller owns and keeps
alive for the length of the call; `rquant._native` is the one place that takes addresses of arrays and tensors.
A matrix is `[rows, cols]`, row-major. `kind` is what its codes are: 2, 4 or 8 for integers of so many bits, 43 for
float8 e4m3fn, 52 for e5m2. `groups = ceil(cols / group_size)`; per channel means `group_size >= cols`.
`threads` is how many threads the call may use, at least 1.

Every function raises ValueError, with the argument, what was expected and what came, for sizes or codes that do not fit.
"""

from os import PathLike
from typing import Final, final

__version__: Final[str]

FLOAT32: Final[int]
FLOAT16: Final[int]
BFLOAT16: Final[int]

ZP_NONE: Final[int]
"""Symmetric: no zero points."""
ZP_UINT8: Final[int]
"""Integer zero points, stored with the codes' offset: `Z + 2**(bits - 1)`."""
ZP_FLOAT16: Final[int]
"""Fractional zero points, stored as the plain Z of `x = S * (q - Z)`."""

def isa() -> str:
    """The instruction set in use: `portable`, `avx2`, `avx512vnni` or `avx512bf16` (held lower by `RQUANT_ISA`)."""

def supported_isas() -> list[str]:
    """What this CPU has, slowest first."""

def kernel_name(kind: int) -> str:
    """The integer microkernel that weights of this width are packed for."""

def default_threads() -> int:
    """Cores that affinity and cgroup leave to this process."""

def adopt_openmp() -> bool:
    """Run calls on the process's OpenMP threads from now on, if an OpenMP runtime is loaded (torch brings one)."""

def choose_threads(chosen: int, worker: bool) -> None:
    """Threads for calls that do not come from Python: `chosen`, or torch's number for 0; no more than that in a worker."""

def register_torch_kernels() -> bool:
    """Give the ops `rquant::linear`, `linear_static` and `conv_static` CPU kernels that need no Python.

    False if the loaded torch cannot have them. What a kernel does not do itself it leaves to an op of the same schema whose
    name ends in `_python`.
    """

def ranges(x: int, dtype: int, rows: int, cols: int, group_size: int, lo: int, hi: int, threads: int) -> int:
    """Write each group's minimum and maximum to float32 `lo` and `hi`, both `[rows, groups]`.

    Returns the flat index of the first NaN or infinity in `x`, or -1 (then `lo` and `hi` are whole).
    """

def qparams(
    lo: int, hi: int, count: int, kind: int, symmetric: bool, half: bool, scale: int, zero_point: int
) -> bool:
    """Turn `count` ranges into float32 scales and (unless symmetric; then pass 0) ZP_UINT8 zero points.

    With `half`, scales are rounded to float16 if all of them lie in its normal range. Returns whether they were;
    zero points are computed from the scales as stored.
    """

def search(
    x: int,
    dtype: int,
    rows: int,
    cols: int,
    kind: int,
    symmetric: bool,
    group_size: int,
    half: bool,
    lo: int,
    hi: int,
    threads: int,
) -> bool:
    """Shrink the ranges that `ranges` wrote to `lo` and `hi` to those of the least squared error.

    `half` as for `qparams`; returns what is then to be said to that.
    """

def half_quadratic(
    x: int,
    dtype: int,
    rows: int,
    cols: int,
    kind: int,
    group_size: int,
    scale: int,
    scale_dtype: int,
    lp_norm: float,
    beta: float,
    kappa: float,
    turns: int,
    zero_point: int,
    threads: int,
) -> None:
    """Write the ZP_FLOAT16 zero points `[rows, groups]` of half-quadratic quantization under the given scales."""

def encode(
    x: int,
    dtype: int,
    rows: int,
    cols: int,
    kind: int,
    group_size: int,
    scale: int,
    scale_dtype: int,
    zero_point: int,
    zp_kind: int,
    codes: int,
    threads: int,
) -> None:
    """`q = clip(round_half_even(x / S) + Z)` as canonical bytes: uint8 `[rows, row_bytes(cols, kind)]`."""

def row_bytes(cols: int, kind: int) -> int:
    """Canonical bytes of one row: `cols` codes, padded to 4 bytes."""

def pack_codes(q: int, rows: int, cols: int, kind: int, codes: int) -> None:
    """int8 codes `[rows, cols]` -> canonical bytes. Raises for a code out of the type's range."""

def unpack_codes(codes: int, rows: int, cols: int, kind: int, q: int) -> None:
    """Canonical bytes -> int8 codes `[rows, cols]`."""

def dequantize(
    codes: int,
    rows: int,
    cols: int,
    kind: int,
    group_size: int,
    scale: int,
    scale_dtype: int,
    zero_point: int,
    zp_kind: int,
    out: int,
    out_dtype: int,
    threads: int,
) -> None:
    """`x = S * (q - Z)` into `out`, `[rows, cols]` of `out_dtype`."""

def packed_len(n: int, k: int, kind: int, group_size: int, scale_dtype: int, zp_kind: int) -> int:
    """Bytes of the panels of an `[n, k]` weight, header included, for the kernel in use."""

def pack(
    codes: int,
    n: int,
    k: int,
    kind: int,
    group_size: int,
    scale: int,
    scale_dtype: int,
    zero_point: int,
    zp_kind: int,
    groups: int,
    panels: int,
    panels_len: int,
    threads: int,
) -> None:
    """Canonical weight -> this machine's panels (header first), cut where a convolution's `groups` end (1: a matrix)."""

def unpack(panels: int, panels_len: int, codes: int, scale: int, zero_point: int, threads: int) -> None:
    """The exact inverse of `pack`, for panels of any machine: bytes, scales and zero points as they were."""

def packed_info(panels: int, panels_len: int) -> tuple[int, int, int, int, int, int, str]:
    """`(n, k, kind, group_size, scale_dtype, zp_kind, layout)` from the header; ValueError if it is not one."""

def packed_is_native(panels: int, panels_len: int, groups: int) -> bool:
    """Whether `pack` with so many groups gives this layout; if not, `unpack` and `pack` anew."""

def linear(
    x: int,
    dtype: int,
    m: int,
    k: int,
    panels: int,
    panels_len: int,
    bias: int,
    bias_dtype: int,
    out: int,
    n: int,
    integer: bool,
    scale: int,
    scales: int,
    threads: int,
) -> None:
    """`out[m, n] = x[m, k] @ dequantize(W).T + bias`, `out` of x's dtype; `bias` 0 for none.

    `integer`: rows of x become int8 (symmetric, one scale a row) and the product accumulates in int32.
    `scale`, 0 for none, is of `scales` ready-made float32 activation scales: one a row, or a single one for all.
    Otherwise float arithmetic. A row of x with NaN or infinity gives a row of NaN.
    """

def linear_outliers(
    x: int,
    dtype: int,
    m: int,
    k: int,
    panels: int,
    panels_len: int,
    bias: int,
    bias_dtype: int,
    out: int,
    n: int,
    threshold: float | None,
    columns: int,
    count: int,
    column_weight: int,
    column_dtype: int,
    threads: int,
) -> None:
    """`linear` in integer arithmetic but for some columns of x, which are multiplied in float.

    With `threshold`, those in which some |x| of a row without NaN or infinity reaches it; else the `count` ascending
    int64 `columns`. Their weights are dequantized, or with fixed columns `column_weight` `[n, count]` (0 for none).
    """

def gemm_i32(a: int, m: int, k: int, panels: int, panels_len: int, out: int, n: int, threads: int) -> None:
    """`out[m, n] = a[m, k] @ q.T`: exact int32 product of int8 `a` and the bare codes. k <= 131071."""

def gather_rows(
    panels: int, panels_len: int, ids: int, count: int, out: int, out_dtype: int, threads: int
) -> None:
    """Row `ids[i]` (int64) of the dequantized weight into `out[i]`. Raises for an id out of range."""

def quantize_rows(x: int, dtype: int, m: int, k: int, q: int, scale: int, threads: int) -> None:
    """Dynamic activation quantization, as `linear` does it: int8 `[m, k]` and one float32 scale a row.

    A row with NaN or infinity gets scale NaN and codes 0; a row of zeros gets scale 1.
    """

def conv_size(sizes: tuple[int, ...]) -> list[int]:
    """Height and width of what a convolution of these `sizes` (see `conv_static`) gives."""

def conv_static(
    x: int,
    x_scale: int,
    scales: int,
    x_zero: int,
    sizes: tuple[int, ...],
    panels: int,
    panels_len: int,
    bias: int,
    bias_dtype: int,
    addend: int,
    addend_scale: int,
    addend_zero: int,
    lo: float | None,
    hi: float | None,
    out: int,
    out_dtype: int,
    out_scale: int,
    out_zero: int,
    threads: int,
) -> None:
    """A convolution of int8 codes `[batch, height, width, channels]` by a packed weight, with what follows fused.

    `sizes`: batch, height, width, channels, out channels, kernel (2), stride (2), padding (top, left, bottom, right),
    dilation (2), groups, transposed (0 or 1), output padding (2). `x_scale` is of `scales` float32: one, or one an image;
    other scales and zero points are the address of one float32 or int8. `bias` and `addend` (int8 codes of the output's
    shape) are 0 for none. `out` is int8 codes where there is an `out_scale`, else (0) floats of `out_dtype`.
    """

@final
class StaticProduct:
    """`conv_static` again and again: of inputs of one size, with one epilogue and one scale for all of an input."""

    def __new__(
        cls,
        sizes: tuple[int, ...],
        lo: float | None,
        hi: float | None,
        bias_dtype: int,
        out_dtype: int,
        held: list[int],
        owners: object,
    ) -> StaticProduct:
        """`held`: addresses of `x_scale, x_zero, bias, addend_scale, addend_zero, out_scale, out_zero`, 0 for none.

        They live as long as `owners`, which this object keeps.
        """

    def run(
        self,
        x: int,
        x_scale: int,
        x_zero: int,
        panels: int,
        panels_len: int,
        bias: int,
        addend: int,
        addend_scale: int,
        addend_zero: int,
        out: int,
        out_scale: int,
        out_zero: int,
        torch_threads: int,
    ) -> bool:
        """False, and nothing done, where what is held lies elsewhere now. On as many threads as were chosen, or torch has."""

def conv_fixed(
    x: int,
    x_zero: int,
    sizes: tuple[int, ...],
    panels: int,
    panels_len: int,
    bias: int,
    multiplier: int,
    shift: int,
    out_zero: int,
    lo: int,
    hi: int,
    out: int,
    threads: int,
) -> None:
    """`conv_static` finished in integers: `clamp(round((sum + bias) * multiplier / 2**shift) + out_zero, lo, hi)`.

    `bias` (0 for none), `multiplier` and `shift` (1 to 62) are int32, one a channel; the 64-bit product is rounded once,
    half to even. For weights with one scale a channel, which the multipliers hold, as they do that of `x`.
    """

def quantize_static(
    x: int, dtype: int, count: int, scale: int, zero: int, codes: int, finite: int, samples: int, threads: int
) -> None:
    """`codes = clip(round_half_even(x / scale) + zero, -127, 127)` of `samples` samples of equally many elements.

    NaN and infinity become `zero`; `finite` (bool, one a sample) says whose there were none of.
    """

def quantize_images(
    x: int,
    dtype: int,
    shape: tuple[int, int, int],
    scale: int,
    zero: int,
    codes: int,
    finite: int,
    threads: int,
) -> None:
    """The same of `shape` (images, channels, pixels); codes lie by pixel: (images, pixels, channels)."""

def dequantize_static(
    codes: int, count: int, scale: int, zero: int, out: int, out_dtype: int, threads: int
) -> None:
    """`out = scale * (codes - zero)`."""

# Operations on int8 codes between layers. `(x, scale, zero)` are the addresses of int8 codes and of their float32 scale and
# int8 zero point, one of each: values are `scale * (q - zero)`. Outputs the same, with parameters that are read.
# Images are `shape` = (images, height, width, channels), in that order in memory.
_Codes = tuple[int, int, int]
_Pair = tuple[int, int]
_Image = tuple[int, int, int, int]

def add_static(
    a: _Codes, b: _Codes, count: int, lo: float | None, hi: float | None, out: _Codes, threads: int
) -> None:
    """`encode(clamp(fma(s_b, q_b - z_b, s_a * (q_a - z_a))))` of `count` elements, clamped to [lo, hi]."""

def requantize_static(
    x: _Codes, count: int, lo: float | None, hi: float | None, out: _Codes, threads: int
) -> None:
    """Codes of the same `count` values, clamped to [lo, hi], under out's parameters."""

def lookup_static(x: int, table: int, count: int, out: int, threads: int) -> None:
    """`table[q + 128]` (int8 `[256]`) of `count` codes."""

def concat_static(xs: list[tuple[int, int, int, int]], rows: int, out: _Codes, threads: int) -> None:
    """Rows of several tensors, each (codes, scale, zero, columns), side by side in `out`, under its parameters."""

def pooled_size(
    size: _Pair, kernel: _Pair, stride: _Pair, padding: _Pair, dilation: _Pair, ceil_mode: bool
) -> _Pair:
    """Height and width of a pooling's output."""

def max_pool_static(
    x: int,
    shape: _Image,
    kernel: _Pair,
    stride: _Pair,
    padding: _Pair,
    dilation: _Pair,
    ceil_mode: bool,
    out: int,
    threads: int,
) -> None:
    """The largest code of each window; -127 where a window has nothing of the image in it."""

def avg_pool_static(
    x: _Codes,
    shape: _Image,
    kernel: _Pair,
    stride: _Pair,
    padding: _Pair,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
    out: _Codes,
    threads: int,
) -> None:
    """Codes of `float32(sum of q - zero) * (scale / count)` of each window; `divisor` in the count's place if given."""

def adaptive_avg_pool_static(x: _Codes, shape: _Image, output_size: _Pair, out: _Codes, threads: int) -> None:
    """The same of windows `floor(i * size / out) .. ceil((i + 1) * size / out)`."""

def layer_norm_static(
    x: _Codes,
    dtype: int,
    rows: int,
    features: int,
    weight: int,
    bias: int,
    eps: float,
    out: _Codes,
    threads: int,
) -> None:
    """Codes of normalized rows. x: floats of `dtype` where its scale is 0, else codes. weight, bias: float32 `[features]` or 0."""

def affine_static(
    x: _Codes,
    shape: tuple[int, int, int],
    mul: int,
    add: int,
    lo: float | None,
    hi: float | None,
    out: _Codes,
    dtype: int,
    threads: int,
) -> None:
    """`clamp(fma(value, mul[c], add[c]))`, shape (samples, channels, inner); floats of `dtype` where out's scale is 0."""

def fake_quantize_static(
    x: int,
    dtype: int,
    shape: tuple[int, int, int],
    scale: int,
    zero: int,
    out: int,
    inside: int,
    threads: int,
) -> None:
    """x, shape (samples, channels, inner), as its codes read back, into `out` of its dtype; into `inside` (bool) whether each
    came without clipping. Either is left out where it is 0. A scale and a zero point a channel."""

def extent(x: int, dtype: int, len: int, threads: int) -> tuple[int, float, float]:
    """`(-1, minimum, maximum)`, infinities without elements; or the index of the first NaN or infinity, and NaN twice."""

@final
class Histogram:
    """Counts of float32 values in so many bins, whose width is a power of two that grows with the range.

    Zeros are counted apart. `qmax` is the largest code, the least one is `-qmax`; ranges contain 0.
    """

    def __new__(cls, bins: int) -> Histogram: ...
    @staticmethod
    def from_parts(counts: int, bins: int, zeros: int, least: float, most: float) -> Histogram:
        """From what `counts`, `zeros` and `extent` said of one."""
    def update(self, x: int, dtype: int, len: int, threads: int) -> tuple[int, float, float]:
        """Count the values; returns what `extent` does. With NaN or infinity nothing is counted."""
    def merge(self, other: Histogram) -> None:
        """Add what another one of as many bins has counted."""
    def counts(self, counts: int, bins: int) -> None:
        """Write the counts to int64 `[bins]`, the lowest bin first."""
    def zeros(self) -> int:
        """Values that are 0."""
    def total(self) -> int:
        """All values."""
    def extent(self) -> tuple[float, float] | None:
        """The least and the largest value."""
    def grid(self) -> tuple[float, float]:
        """The width of a bin and the lower end of the first."""
    def percentile(self, p: float, symmetric: bool) -> tuple[float, float]:
        """The range of `p` percent of the values."""
    def least_squares(self, qmax: int, symmetric: bool) -> tuple[float, float]:
        """The range of the least mean squared error."""
    def entropy(self, qmax: int, symmetric: bool) -> tuple[float, float]:
        """The range of the least KL divergence."""
    def mean_squared_error(self, lo: float, hi: float, qmax: int, symmetric: bool) -> float:
        """That of a range."""
    def kl_divergence(self, lo: float, hi: float, qmax: int, symmetric: bool) -> float:
        """That of a range, in nats."""

_CudaWeight = tuple[int, int, int, int, int, int, int, int, int]
"""`codes, n, k, bits, group_size, scale, scale_dtype, zero_point, zp_kind`: a canonical weight of 8, 4 or 2 bits on a GPU;
to dequantize also of float8, "bits" 43 (e4m3fn) or 52 (e5m2).

Addresses are of the device's memory, `codes` at a multiple of 16. Functions with a `stream` launch on it (a handle, 0 for the
default one) and return at once; a first call may compile for seconds. They raise ValueError for arguments that do not fit
and RuntimeError for what CUDA says: no driver, no NVRTC, a source that does not compile (with its log), a kernel that is
not loaded yet while the stream records a graph.
"""

def cuda_driver_present() -> bool:
    """Whether libcuda can be opened. The functions with an `ordinal` raise RuntimeError without it."""

def cuda_configure(nvrtc: str | PathLike[str] | None, major: int, cache: str | PathLike[str] | None) -> None:
    """Path of NVRTC, the major of CUDA that it is of, and the folder of compiled modules (None: in memory only)."""

def cuda_device(ordinal: int) -> tuple[str, int]:
    """Architecture, as NVRTC names it, and multiprocessors."""

def cuda_dequantize(ordinal: int, stream: int, w: _CudaWeight, out: int, out_dtype: int) -> None:
    """`S * (q - Z)` into `out` `[n, k]`, at a multiple of 16."""

def cuda_gather_rows(
    ordinal: int,
    stream: int,
    w: _CudaWeight,
    ids: int,
    id_bytes: int,
    count: int,
    out: int,
    out_dtype: int,
) -> None:
    """Rows of `S * (q - Z)` at `count` ids of 4 or 8 bytes, into `out` `[count, k]`, at a multiple of 16; NaN where there is none."""

def cuda_quantize_rows(
    ordinal: int,
    stream: int,
    x: int,
    x_dtype: int,
    m: int,
    k: int,
    given: int,
    given_len: int,
    skip: int,
    codes: int,
    scale: int,
) -> None:
    """int8 `codes` of x `[m, k]`, one float32 `scale` a row; under `given` float32 scales, 1 or `m`, if that is not 0.

    `skip`, if not 0: `[k]` bytes, columns with another than 0 count as 0.
    """

def cuda_bitpack(
    ordinal: int, stream: int, pack: bool, from_: int, to: int, n: int, k: int, bits: int
) -> None:
    """int8 codes `[n, k]` to canonical bytes, or back."""

def cuda_linear(
    ordinal: int,
    stream: int,
    x: int,
    x_dtype: int,
    m: int,
    w: _CudaWeight,
    bias: int,
    bias_dtype: int,
    out: int,
    small: bool | None = None,
    parts: int = 0,
    count: int = 1,
) -> None:
    """`out[m, n] = x[m, k] @ W.T + bias` of float x, at a multiple of 16, in its dtype; `bias` may be 0.

    Float32, and any before compute capability 8.0: at most 8 rows. Group sizes: multiples of 32, or one group a row. `small`: by
    the kernel for at most 8 rows, or by tiles; by default as m is. `count` blocks share k where that is not 1; `parts` is then
    memory for float32 `[count, m, n]`.
    """

def cuda_linear_parts(
    ordinal: int, m: int, x_dtype: int, n: int, k: int, bits: int, small: bool | None = None
) -> int:
    """The `count` of `cuda_linear` that keeps all multiprocessors at work."""

def cuda_linear_int8(
    ordinal: int,
    stream: int,
    x: int,
    row_scale: int,
    m: int,
    w: _CudaWeight,
    bias: int,
    bias_dtype: int,
    bias_each: bool,
    out: int,
    out_dtype: int,
) -> None:
    """The same of int8 x under float32 scales of its rows, by exact int32. `bias_each`: `bias` is `[m, n]`."""

def cuda_find_outliers(
    ordinal: int,
    stream: int,
    x: int,
    x_dtype: int,
    m: int,
    k: int,
    threshold: float,
    flags: int,
    columns: int,
    count: int,
) -> None:
    """Columns of x with a magnitude of at least `threshold` in a finite row: 1 in `flags` `[k]`, int32 in `columns`, how many."""

def cuda_outlier_products(
    ordinal: int,
    stream: int,
    x: int,
    x_dtype: int,
    m: int,
    columns: tuple[int, int, int, int],
    w: _CudaWeight,
    bias: int,
    bias_dtype: int,
    out: int,
) -> None:
    """float32 `out[m, n] = x[:, listed] @ W[:, listed].T + bias`; `columns`: list, count, weights `[n, count]` or 0, their dtype."""

def cuda_modules() -> list[tuple[str, str, list[str], list[str], bool]]:
    """Of each variant of a source: name, file, options, kernels, whether it needs compute capability 8.0."""

def cuda_compile(nvrtc: str | PathLike[str], name: str, arch: str) -> tuple[bytes, str]:
    """A module's machine code and the assembler's report, with registers and spills of each kernel. Needs no GPU."""

def cuda_compile_text(
    nvrtc: str | PathLike[str], name: str, source: str, options: list[str], arch: str
) -> tuple[bytes, str]:
    """The same of any source that includes the kernels' headers; PTX for an `arch` like "compute_90"."""

def cuda_nvrtc_version(nvrtc: str | PathLike[str]) -> tuple[int, int]:
    """Major and minor of NVRTC at this path."""

def cuda_precompile(
    nvrtc: str | PathLike[str], name: str, arch: str, folder: str | PathLike[str]
) -> PathLike[str]:
    """Compile a module into `folder`, unless it is there; its file. Needs no GPU."""
