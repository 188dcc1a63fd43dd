"""The `rquant::` ops: schema, kernel and fake of each, once.

`Library.define` and `impl` cost a third of a `custom_op` per call. None has an autograd kernel, which would cost more
than the op: `_autograd` calls these with gradients where they are wanted.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, register_fake

from ._backends import cpu, cuda, cuda_outliers, reference
from ._backends.elsewhere import on_any_device, only_on_cpu
from ._native import QMatrix

_WEIGHT = "Tensor codes, Tensor scale, Tensor? zero_point"
_SCHEME = "int kind, int group_size, bool symmetric, str optimizer"
_library = Library("rquant", "DEF")


def define(name: str, schema: str, shape, *, on_cpu=None, on_cuda=None, elsewhere=None) -> None:  # type: ignore[no-untyped-def]
    """One op: `shape` is its fake, `on_cpu` and `on_cuda` its kernels there, `elsewhere` that of any other device."""
    _library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    if on_cpu is not None:
        _library.impl(name, on_cpu, "CPU")
    if on_cuda is not None:
        _library.impl(name, on_cuda, "CUDA")
    if elsewhere is not None:
        kernel = elsewhere if elsewhere is only_on_cpu else on_any_device(elsewhere)
        _library.impl(name, kernel, "CompositeExplicitAutograd")
    register_fake(f"rquant::{name}", shape, lib=_library)


def define_canonical(name: str, schema: str, shape, *, tensors: int, sizes: int, **kernels) -> None:  # type: ignore[no-untyped-def]
    """The same of an op on a canonical weight, which its kernels take as one `QMatrix`: among the op's arguments are its three
    tensors, from place `tensors` on, and its three sizes, from `sizes` on.
    """

    def gathering(kernel: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(kernel)
        def call(*given: Any) -> Any:
            q = QMatrix(*given[tensors : tensors + 3], *given[sizes : sizes + 3])
            return kernel(*given[:tensors], q, *given[tensors + 3 : sizes], *given[sizes + 3 :])

        return call

    define(name, schema, shape, **{device: gathering(kernel) for device, kernel in kernels.items()})


def define_native(name: str, schema: str, shape, *, on_cpu, **kernels) -> None:  # type: ignore[no-untyped-def]
    """The same of an op whose kernel on the CPU is the native module's, if this torch takes one.

    That leaves to the Python one, `name_python`, whatever is unusual.
    """
    define(f"{name}_python", schema, shape, on_cpu=on_cpu, **kernels)
    define(name, schema, shape, on_cpu=None if cpu.NATIVE else on_cpu, **kernels)


# `scale`: activation scales that are known before (of a row whose other part lies elsewhere, or calibrated); else a row's
# own. Float32, one a row or a single one for all.
_LINEAR = (
    "(Tensor x, Tensor panels, Tensor? bias, int in_features, int out_features, bool integer, "
    "Tensor? scale=None) -> Tensor"
)


def _linear_shape(x: Tensor, panels: Tensor, bias: Tensor | None, k: int, n: int, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))


define_native("linear", _LINEAR, _linear_shape, on_cpu=cpu.linear, elsewhere=only_on_cpu)
define_canonical(
    "linear_canonical",
    f"(Tensor x, {_WEIGHT}, Tensor? bias, int in_features, int kind, int group_size, bool integer, "
    "Tensor? scale_of_x=None) -> Tensor",
    lambda x, codes, *_: x.new_empty((*x.shape[:-1], codes.shape[0])),
    tensors=1,
    sizes=5,
    on_cpu=cpu.linear_canonical,
    on_cuda=cuda.linear_canonical,
    elsewhere=reference.linear_canonical,
)
define(
    "linear_unfrozen",
    f"(Tensor x, Tensor weight, Tensor? bias, {_SCHEME}, bool integer) -> Tensor",
    lambda x, weight, *_: x.new_empty((*x.shape[:-1], weight.shape[0])),
    on_cpu=cpu.linear_unfrozen,
    on_cuda=cuda.linear_unfrozen,
    elsewhere=reference.linear_unfrozen,
)
_OUTLIERS = "float? threshold, int[]? columns"
define(
    "linear_outliers",
    "(Tensor x, Tensor panels, Tensor? bias, int in_features, int out_features, "
    f"{_OUTLIERS}, Tensor? column_weight) -> Tensor",
    lambda x, panels, bias, k, n, *_: x.new_empty((*x.shape[:-1], n)),
    on_cpu=cpu.linear_outliers,
    elsewhere=only_on_cpu,
)
define_canonical(
    "linear_outliers_canonical",
    f"(Tensor x, {_WEIGHT}, Tensor? bias, int in_features, int kind, int group_size, "
    f"{_OUTLIERS}, Tensor? column_weight) -> Tensor",
    lambda x, codes, *_: x.new_empty((*x.shape[:-1], codes.shape[0])),
    tensors=1,
    sizes=5,
    on_cpu=cpu.linear_outliers_canonical,
    on_cuda=cuda_outliers.linear_outliers_canonical,
    elsewhere=reference.linear_outliers_canonical,
)
define(
    "linear_outliers_unfrozen",
    f"(Tensor x, Tensor weight, Tensor? bias, {_SCHEME}, {_OUTLIERS}) -> Tensor",
    lambda x, weight, *_: x.new_empty((*x.shape[:-1], weight.shape[0])),
    on_cpu=cpu.linear_outliers_unfrozen,
    on_cuda=cuda_outliers.linear_outliers_unfrozen,
    elsewhere=reference.linear_outliers_unfrozen,
)
define(
    "round_rows",
    f"(Tensor x, {_OUTLIERS}) -> Tensor",
    lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
    elsewhere=reference.round_rows,
)
define(
    "embedding",
    "(Tensor ids, Tensor panels, int dim, ScalarType dtype) -> Tensor",
    lambda ids, panels, dim, dtype: ids.new_empty((*ids.shape, dim), dtype=dtype),
    on_cpu=cpu.embedding,
    elsewhere=only_on_cpu,
)
define_canonical(
    "embedding_canonical",
    f"(Tensor ids, {_WEIGHT}, int dim, int kind, int group_size, ScalarType dtype) -> Tensor",
    lambda ids, codes, scale, zero, dim, kind, group, dtype: ids.new_empty((*ids.shape, dim), dtype=dtype),
    tensors=1,
    sizes=4,
    on_cuda=cuda.embedding_canonical,
    elsewhere=reference.embedding_canonical,
)
define(
    "gemm_i32",
    "(Tensor a, Tensor panels, int out_features) -> Tensor",
    lambda a, panels, n: a.new_empty((a.shape[0], n), dtype=torch.int32),
    on_cpu=cpu.gemm_i32,
    elsewhere=only_on_cpu,
)
define(
    "dequantize",
    "(Tensor panels, int n, int k, ScalarType dtype) -> Tensor",
    lambda panels, n, k, dtype: panels.new_empty((n, k), dtype=dtype),
    on_cpu=cpu.dequantize,
)
define_canonical(
    "dequantize_canonical",
    f"({_WEIGHT}, int cols, int kind, int group_size, ScalarType dtype) -> Tensor",
    lambda codes, scale, zero, cols, kind, group, dtype: codes.new_empty((codes.shape[0], cols), dtype=dtype),
    tensors=0,
    sizes=3,
    on_cpu=cpu.dequantize_canonical,
    on_cuda=cuda.dequantize_canonical,
    elsewhere=reference.dequantize_canonical,
)
define(
    "fake_quantize",
    f"(Tensor weight, {_SCHEME}) -> Tensor",
    lambda weight, *_: torch.empty_like(weight, memory_format=torch.contiguous_format),
    on_cpu=cpu.fake_quantize,
    elsewhere=reference.fake_quantize,
)
define(
    "inside_range",
    f"(Tensor weight, {_SCHEME}) -> Tensor",
    lambda weight, *_: weight.new_empty(weight.shape, dtype=torch.bool),
    on_cpu=cpu.inside_range,
    elsewhere=reference.inside_range,
)
define(
    "quantize_rows",
    "(Tensor x) -> (Tensor, Tensor)",
    lambda x: (x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32)),
    on_cpu=cpu.quantize_rows,
    on_cuda=cuda.quantize_rows,
    elsewhere=reference.quantize_rows,
)

linear = torch.ops.rquant.linear.default
linear_python = torch.ops.rquant.linear_python.default
linear_canonical = torch.ops.rquant.linear_canonical.default
linear_unfrozen = torch.ops.rquant.linear_unfrozen.default
linear_outliers = torch.ops.rquant.linear_outliers.default
linear_outliers_canonical = torch.ops.rquant.linear_outliers_canonical.default
linear_outliers_unfrozen = torch.ops.rquant.linear_outliers_unfrozen.default
round_rows = torch.ops.rquant.round_rows.default
embedding = torch.ops.rquant.embedding.default
embedding_canonical = torch.ops.rquant.embedding_canonical.default
gemm_i32 = torch.ops.rquant.gemm_i32.default
dequantize = torch.ops.rquant.dequantize.default
dequantize_canonical = torch.ops.rquant.dequantize_canonical.default
fake_quantize = torch.ops.rquant.fake_quantize.default
inside_range = torch.ops.rquant.inside_range.default
quantize_rows = torch.ops.rquant.quantize_rows.default


def checked(name: str) -> Callable[..., Any]:
    """An op of `define_native` with errors of their own type: those that come through its native kernel are RuntimeErrors."""
    op, python = (getattr(torch.ops.rquant, each).default for each in (name, f"{name}_python"))

    def call(*arguments: Any) -> Any:
        try:
            return op(*arguments)
        except RuntimeError as error:
            if not re.match(r"\w+Error: ", str(error)):
                raise
        # Python says it again, as it is; not in the handler, so that the user sees one error and not two
        return python(*arguments)

    return call


_checked_linear = checked("linear")


def checked_linear(x: Tensor, *arguments: Any) -> Tensor:
    """`linear` of x in any memory, with errors of their own type."""
    return _checked_linear(x.contiguous(), *arguments)  # type: ignore[no-any-return]
