"""`backend_info`: what a bug report needs."""

import os
import platform
import sys
from typing import Any

from . import _rquant
from ._threads import get_num_threads
from .cuda import compiler
from .qtypes import INTEGERS


def backend_info() -> dict[str, Any]:
    """Versions, instruction set (named as in RQUANT_ISA), kernel of each weight type, threads, torch, CUDA, NVRTC.

    torch, CUDA: None where torch has not been imported, or has no device. NVRTC: the path that CUDA kernels are compiled by.
    """
    torch: Any = sys.modules.get("torch")
    cuda = torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None
    nvrtc = compiler.find_nvrtc()
    return {
        "rquant": _rquant.__version__,
        "isa": _rquant.isa(),
        "isas of this CPU": _rquant.supported_isas(),
        "kernels": {qtype.name: _rquant.kernel_name(qtype.bits) for qtype in INTEGERS},
        "threads": get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch and str(torch.__version__),
        "cuda": cuda,
        "cuda driver": _rquant.cuda_driver_present(),
        "cuda architecture": _rquant.cuda_device(torch.cuda.current_device())[0] if cuda else None,
        "cuda kernels": str(compiler.cache_folder()),
        "nvrtc": nvrtc and str(nvrtc[0]),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
