"""What this process knows of the driver and its devices, asked when first needed and kept."""

import warnings
from functools import lru_cache

from .. import _rquant
from . import compiler


@lru_cache(maxsize=1)
def ready() -> bool:
    """Whether kernels can run here; says once why not."""
    if not _rquant.cuda_driver_present():
        return False
    found, cache = compiler.find_nvrtc(), compiler.cache_folder()
    if found is None and not any(cache.glob("*.cubin")):
        warnings.warn(
            "rquant found no NVRTC to compile its CUDA kernels (set RQUANT_NVRTC to the path of libnvrtc.so): "
            "its layers compute by plain torch operations and dequantize a weight for each call",
            stacklevel=2,
        )
        return False
    path, major = found or (None, compiler.torch_major() or 0)
    _rquant.cuda_configure(path, major, cache)
    return True


@lru_cache(maxsize=64)
def has_tensor_cores(index: int) -> bool:
    """Of the kind that kernels for products use: compute capability 8.0 or later."""
    return capability(index) >= 80


@lru_cache(maxsize=64)
def capability(index: int) -> int:
    """Ten times the compute capability's major, plus its minor."""
    arch, _ = _rquant.cuda_device(index)
    return int(arch.removeprefix("sm_").rstrip("af"))


@lru_cache(maxsize=64)
def device_name(index: int) -> str:
    """The model as the driver calls it; its architecture and number of multiprocessors where torch does not see it."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(index)
    arch, multiprocessors = _rquant.cuda_device(index)
    return f"{arch} with {multiprocessors} multiprocessors"
