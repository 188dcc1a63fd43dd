"""What figures were taken on: the device, the driver, versions, the very build of rquant."""

import datetime
import hashlib
import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path

import torch

import rquant
from rquant.cuda import cache_folder, find_nvrtc

PACKAGES = ("torch", "triton", "bitsandbytes", "torchao", "numpy")


def describe(device: torch.device) -> dict:
    """As JSON."""
    properties = torch.cuda.get_device_properties(device)
    native = Path(rquant._rquant.__file__).read_bytes()
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory GiB": round(properties.total_memory / 2**30, 1),
        "L2 MiB": round(getattr(properties, "L2_cache_size", 0) / 2**20),
        "driver": driver(),
        "cuda": torch.version.cuda,
        "nvrtc": str(find_nvrtc()),
        "kernels in": str(cache_folder()),
        "python": platform.python_version(),
        "rquant": f"{rquant.__version__}+{hashlib.sha256(native).hexdigest()[:12]}",
        "packages": {name: version(name) for name in PACKAGES},
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def driver() -> str | None:
    """Its version, where nvidia-smi tells."""
    if (command := shutil.which("nvidia-smi")) is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip() or None


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
