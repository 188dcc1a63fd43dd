"""NVIDIA GPUs: where the compiler of the kernels is, where compiled ones are kept, and what may be done ahead of time.

Layers need none of this: on a CUDA device their kernels are compiled when first used, and kept in `cache_folder()`.
`precompile` does that beforehand, for any GPU; `warmup` loads them before a graph is captured; `tune` measures which of them
are the fastest here.
"""

from .compiler import cache_folder, find_nvrtc
from .precompile import precompile
from .tune import tune
from .warmup import warmup

__all__ = ["cache_folder", "find_nvrtc", "precompile", "tune", "warmup"]
