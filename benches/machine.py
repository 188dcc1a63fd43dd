"""What a figure was taken on: processor, versions, the very build of rquant."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import rquant

PACKAGES = (
    "torch",
    "onnxruntime",
    "onnx",
    "openvino",
    "auto-round-lib",
    "torchao",
    "optimum-quanto",
    "bitsandbytes",
    "numpy",
)


def cpu_name() -> str:
    """The processor, as the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def build_of_rquant() -> str:
    """Version and the start of the native module's SHA-256: another build gives other figures."""
    native = Path(rquant._rquant.__file__)
    return f"{rquant.__version__}+{hashlib.sha256(native.read_bytes()).hexdigest()[:12]}"


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as missing:
        return str(missing)


def describe() -> dict:
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "isa": rquant.backend_info()["isa"],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "rquant": build_of_rquant(),
        "packages": {name: version(name) for name in PACKAGES},
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
