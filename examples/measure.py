"""How the demo measures: time interleaved over the models, and bytes that are really there."""

import time
from collections.abc import Callable, Mapping
from statistics import median

from rquant.evaluate import resident_bytes

__all__ = ["interleaved", "resident_bytes"]


def interleaved(
    work: Mapping[str, Callable[[], object]], rounds: int, step: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Median seconds of each entry of `work`.

    Every round runs each entry once, so that whatever else the machine does meanwhile hits all of them alike.
    One round goes before and is not counted. `step` is called after each run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for counted in range(-1, rounds):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if counted >= 0:
                seconds[name].append(time.perf_counter() - start)
            step()
    return {name: median(values) for name, values in seconds.items()}
