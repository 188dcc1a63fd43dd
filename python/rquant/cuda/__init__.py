"""NVIDIA GPUs: where the compiler of the kernels is, where compiled ones are kept, and compiling ahead of time.

Layers need none of this: on a CUDA device their kernels are compiled when first used, and kept in `cache_folder()`.
"""

from .compiler import cache_folder, find_nvrtc
from .precompile import precompile

__all__ = ["cache_folder", "find_nvrtc", "precompile"]
