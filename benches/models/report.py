"""What was measured: one record a model for the JSON file, a markdown table, the machine's particulars."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path

import rquant

FOLDERS = ("cuda kernels", "nvrtc")
"""What of the backend's report says where this machine keeps its files."""
PACKAGES = ["rquant", "torch", "transformers", "llama-cpp-python", "gguf", "numpy"]


def cpu_name() -> str:
    """The processor, as the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def versions() -> dict[str, str]:
    """Of the packages that matter, where they are there."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def machine() -> dict[str, object]:
    """Processor, packages, and what rquant and llama.cpp use of the processor."""
    record: dict[str, object] = {"cpu": cpu_name(), "cores": os.cpu_count(), "versions": versions()}
    info = rquant.backend_info()
    record["rquant"] = {key: str(info[key]) for key in info if key not in FOLDERS}
    try:
        from .llama_arm import system_info

        record["llama.cpp"] = system_info()
    except (ImportError, OSError, RuntimeError) as error:
        record["llama.cpp"] = f"absent: {error}"
    return record


def best_of_llama(arms: list[dict], bits: int, work: str) -> float | None:
    """llama.cpp's least seconds a token at this many bits."""
    times = [
        arm["median"][work]
        for arm in arms
        if arm["name"].startswith("llama.cpp") and arm["bits"] == bits and "median" in arm
    ]
    return min(times, default=None)


def table(model: dict) -> str:
    """Markdown: a row an arm that was timed, then a line for each that was not."""
    arms = model["arms"]
    timed = [arm for arm in arms if "median" in arm]
    floats = next((arm["median"] for arm in timed if arm["name"] == "torch float32"), {})
    works = [work for arm in timed[:1] for work in arm["median"] if work.startswith("prefill")] + ["decode"]
    header = ["arm", "MB", "cosine", "top-1"]
    for work in works:
        header += [f"{work} tok/s", "x float32", "x llama.cpp"]
    header += ["lean decode tok/s", "linear layers"]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for arm in timed:
        seconds = arm["median"]
        row = [
            arm["name"],
            f"{arm['bytes'] / 1e6:,.0f}",
            f"{arm['cosine']:.4f}",
            f"{100 * arm['top1']:.0f} %",
        ]
        for work in works:
            rival = None if arm["name"].startswith("llama.cpp") else best_of_llama(arms, arm["bits"], work)
            row += [rate(seconds[work]), ratio(floats.get(work), seconds[work]), ratio(rival, seconds[work])]
        share = f"{100 * seconds['linears'] / seconds['decode']:.0f} %" if "linears" in seconds else ""
        lines.append([*row, rate(seconds["lean"]) if "lean" in seconds else "", share])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    missing = [f"not timed: {arm['name']}: {arm['error']}" for arm in arms if "error" in arm]
    return "\n".join([text, *([""] if missing else []), *missing])


def rate(seconds: float) -> str:
    """Tokens a second."""
    return f"{1 / seconds:,.1f}" if seconds > 0.01 else f"{1 / seconds:,.0f}"


def ratio(of: float | None, seconds: float) -> str:
    """How many times faster than something that takes `of` seconds."""
    return "" if of is None else f"{of / seconds:.2f}"


def save(record: dict, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)
