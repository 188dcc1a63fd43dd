"""NVRTC: where it is. torch's CUDA wheels bring the one that fits their driver."""

import ctypes.util
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_NAME = re.compile(r"libnvrtc\.so\.(\d+)(\.|$)")


def find_nvrtc(major: int | None = None) -> tuple[Path, int] | None:
    """NVRTC's path and the major of CUDA it is of, or None.

    `major`: by default that of the torch that is imported, else any. Looked for in this order: `RQUANT_NVRTC` (which is
    taken as it is), a library that the process has loaded, NVIDIA's wheels, torch's, `CUDA_HOME`, the system's.
    """
    if given := os.environ.get("RQUANT_NVRTC"):
        found = _NAME.search(Path(given).resolve().name)
        return Path(given), int(found[1]) if found else major or torch_major() or 0
    major = major or torch_major()
    for path in _candidates():
        found = _NAME.search(path.name)
        if found and major in (None, int(found[1])):
            return path, int(found[1])
    return None


def torch_major() -> int | None:
    """The major of CUDA that the imported torch was built for; None without torch, or without CUDA."""
    version = getattr(getattr(sys.modules.get("torch"), "version", None), "cuda", None)
    return int(version.split(".")[0]) if version else None


def cache_folder() -> Path:
    """Where compiled kernels are kept: `RQUANT_CACHE_DIR`, else `rquant` in the user's cache folder."""
    if given := os.environ.get("RQUANT_CACHE_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rquant"


def _candidates() -> Iterator[Path]:
    yield from _loaded()
    for package, folders in (("nvidia", ("cu*/lib", "cuda_nvrtc/lib")), ("torch", ("lib",))):
        spec = importlib.util.find_spec(package)
        for root in (spec and spec.submodule_search_locations) or ():
            for folder in folders:
                # the newest first, where nothing says which
                yield from sorted(Path(root).glob(f"{folder}/libnvrtc.so.*"), reverse=True)
    if home := os.environ.get("CUDA_HOME"):
        yield from sorted(Path(home).glob("lib64/libnvrtc.so.*"), reverse=True)
    if name := ctypes.util.find_library("nvrtc"):
        yield Path(name)


def _loaded() -> Iterator[Path]:
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for path in dict.fromkeys(re.findall(r"(/\S+libnvrtc\.so\.\S+)$", maps, re.MULTILINE)):
        yield Path(path)
