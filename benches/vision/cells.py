"""One network at one batch: make every arm, check its logits, time the arms in turns."""

import time
from collections.abc import Callable

import numpy as np
import torch
from cells import timed
from torch import Tensor
from turns import Turn
from zoo import vision

from . import arms_of

SIZE, CALIBRATION = 224, 32  # pixels, pictures
LEAST = 0.9  # cosine
SAMPLES = 5  # at least
UNSWEPT = np.empty(0, np.float32)


def centred_cosine(got: Tensor, want: Tensor, middle: Tensor) -> float:
    """Mean cosine of two `[n, classes]`, less what all pictures' logits have in common, which any arm gets right."""
    return torch.cosine_similarity(got - middle, want - middle, dim=1).mean().item()


def take_turns(turns: list[Turn], seconds: float, told: Callable[[], object]) -> None:
    """Sample every arm in turns until `seconds` are over and each has enough."""
    end = time.perf_counter() + seconds
    done = 0
    while done < SAMPLES or time.perf_counter() < end:
        for turn in turns:
            turn.sample(UNSWEPT)
        done += 1
        told()


@torch.inference_mode()
def measure(
    net: str, batch: int, threads: int, part: list[str] | None, seconds: float, told: Callable[[], object]
) -> list[dict]:
    """A record of each arm: its figures, or why there are none. `told` is called now and then."""
    model = vision.full(net)
    pictures, x = vision.scenes(CALIBRATION, SIZE, seed=1), vision.scenes(batch, SIZE, seed=2)
    middle, want = model(pictures).mean(0), model(x)
    records, turns = [], {}
    for arm in arms_of(threads, part):
        record = {"name": arm.name, "status": "ok"}
        records.append(record)
        try:
            run = arm.make(model, pictures, x)
            run()
            first, y = timed(run)
            record["cosine"] = round(centred_cosine(y.float(), want, middle), 5)
            if not record["cosine"] >= LEAST:
                record["status"] = "wrong answer"
                continue
            turns[arm.name] = Turn([run], cold=False, first=first)
        except Exception as error:
            if arm.ours:
                raise
            record |= {"status": "absent", "message": f"{type(error).__name__}: {error}"}
        told()
    take_turns(list(turns.values()), seconds, told)
    for record in records:
        if record["name"] in turns:
            record |= turns[record["name"]].result()
    return records
