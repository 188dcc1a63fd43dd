"""The table of bench_vision.py."""

from collections.abc import Iterable

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
