"""The tables of bench_vision.py: every arm, and rquant beside the fastest other one."""

import re
from collections.abc import Iterable, Iterator

HEADER = ("network", "batch", "threads", "arm", "cosine", "ms", "least ms", "rquant faster by")


def ours(arms: list[dict]) -> float | None:
    """Median microseconds of rquant's fastest arm."""
    times = [arm["median_us"] for arm in arms if arm["name"].startswith("rquant") and "median_us" in arm]
    return min(times, default=None)


def rows(cells: Iterable[dict]) -> list[list[str]]:
    """A row an arm, the fastest first; those that were not timed last, with the reason."""
    found = []
    for cell in cells:
        where = [cell["net"], str(cell["batch"]), str(cell["threads"])]
        best = ours(cell["arms"])
        for arm in sorted(cell["arms"], key=lambda arm: arm.get("median_us", float("inf"))):
            cosine = f"{arm['cosine']:.4f}" if "cosine" in arm else ""
            if "median_us" not in arm:
                found.append([*where, arm["name"], cosine, arm["status"], "", ""])
                continue
            times = (f"{arm[key] / 1e3:.2f}" for key in ("median_us", "min_us"))
            found.append(
                [*where, arm["name"], cosine, *times, f"{arm['median_us'] / best:.2f}x" if best else ""]
            )
    return found


def markdown(cells: Iterable[dict]) -> str:
    """The table, and why an arm is absent."""
    cells = list(cells)
    lines = [HEADER, ["---"] * 4 + ["---:"] * (len(HEADER) - 4), *rows(cells)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    why = {f"{arm['name']}: {arm['message']}" for cell in cells for arm in cell["arms"] if "message" in arm}
    return "\n".join([text, "", *sorted(why)]) if why else text


SUMMARY = (
    "network",
    "batch",
    "threads",
    "float32",
    "rquant",
    "traced",
    "packaged",
    "fastest peer",
    "of the peer",
)
NETS = {"resnet18": "ResNet18", "mobilenet_v2": "MobileNetV2"}


def compared(cells: Iterable[dict]) -> Iterator[tuple[dict, float, str, dict[str, float]]]:
    """Of each cell: itself, torch's least median in float32, the fastest int8 peer, and the medians by arm; milliseconds."""
    for cell in cells:
        times = {arm["name"]: arm["median_us"] / 1e3 for arm in cell["arms"] if "median_us" in arm}
        float32 = min(time for name, time in times.items() if name.startswith("float32"))
        peers = [name for name in times if not name.startswith("rquant") and "float32" not in name]
        yield cell, float32, min(peers, key=lambda name: times[name]), times


def summary(cells: Iterable[dict]) -> str:
    """A row a cell: medians in milliseconds, and how many times as fast as the fastest peer rquant is, in each of its ways."""
    lines = [SUMMARY, ["---"] * 3 + ["---:"] * 4 + ["---", "---"]]
    for cell, float32, peer, times in compared(cells):
        ours = [times[name] for name in ("rquant", "rquant traced", "rquant packaged")]
        ratios = ", ".join(f"{times[peer] / time:.2f}" for time in ours)
        name = re.sub(" (QDQ|QOperator)", "", peer).replace("ort", "onnxruntime")
        where = [NETS.get(cell["net"], cell["net"]), str(cell["batch"]), str(cell["threads"])]
        lines.append([*where, *map(_shown, [float32, *ours]), f"{_shown(times[peer])}, {name}", ratios])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(ms: float) -> str:
    return f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"
