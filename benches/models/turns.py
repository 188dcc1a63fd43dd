"""Time, taken in turns: each round every arm reads and writes once, so that what else the machine does hits all alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import Tensor

PAUSE = 0.02  # seconds before a turn: the last arm's threads spin a while before they sleep
Samples = dict[str, list[float]]


@torch.inference_mode()
def turn(arm, tokens: Tensor, prompt: int, decode: int, prefills: list[int], samples: Samples) -> None:
    """Append one arm's seconds a token of each thing it does. The prompt is read untimed: that wakes the threads."""
    time.sleep(PAUSE)
    arm.read(tokens[:prompt])
    works = arm.works(tokens[prompt : prompt + decode])
    works |= {f"prefill {n}": (lambda n=n: arm.read(tokens[:n]), n) for n in prefills}
    for name, (run, count) in works.items():
        start = time.perf_counter()
        run()
        samples.setdefault(name, []).append((time.perf_counter() - start) / count)


def rounds(
    arms: Mapping[str, object], most: int, seconds: float, take: Callable[[object, Samples], None]
) -> dict[str, dict]:
    """Each arm's samples and medians after `most` rounds, or as many as `seconds` allow: one at least."""
    samples: dict[str, Samples] = {name: {} for name in arms}
    start, done = time.perf_counter(), 0
    while done < most:
        for name, arm in arms.items():
            take(arm, samples[name])
        done += 1
        if (time.perf_counter() - start) * (done + 1) / done > seconds:
            break
    return {
        name: {"median": {work: median(values) for work, values in of.items()}, "samples": of}
        for name, of in samples.items()
    }
