"""Timing arms in turns, with caches swept or left alone, and with each arm's threads quiet before the next one's turn.

Pools of threads spin after a call (OpenMP's for milliseconds, onnxruntime's and OpenVINO's theirs), which gives their
owner its best time and would rob the arm after it. So each turn begins by sleeping until the process uses no processor
time, then one call that is not timed wakes the arm's own threads, and then come the timed ones.

Cold: 64 MB are read by all threads before a sample, so that neither L2 nor L3 keeps any of the weights, and the sample
runs each copy of the layer once. Hot: the same copy over and over.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch

SAMPLE = 1e-3  # seconds one sample takes at least, where there are copies enough
LONG = 20e-3  # a call of this length needs no waking call, nor another copy, and three samples do
FEW, ENOUGH = 3, 5  # samples
SLOW = 20.0  # times the fastest: few samples do, and one if it takes over ENDLESS
ENDLESS = 0.2  # seconds
QUIET = 0.1  # processor time over wall time of a process that waits


def settle() -> None:
    """Return when no thread of this process has spun for a millisecond, at the latest after 30."""
    for _ in range(30):
        before = time.process_time()
        time.sleep(1e-3)
        if time.process_time() - before < QUIET * 1e-3:
            return


@dataclass
class Turn:
    """One arm in a cell: its copies, and the samples taken so far."""

    runs: list[Callable]  # a call for each copy
    cold: bool
    first: float  # seconds of a call that was made already: where calls are long, the first sample
    samples: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)  # processor time over wall time, by sample
    at: int = 0

    def __post_init__(self) -> None:
        self.once = self.first  # seconds of a call, the least so far
        if self.first > LONG:
            self.samples.append(self.first)
            return
        for run in (
            self.runs if self.cold else self.runs[:1]
        ):  # some make themselves ready in their first call
            run()
        settle()
        start = time.perf_counter()
        self.runs[0]()
        self.once = time.perf_counter() - start

    @property
    def calls(self) -> int:
        """In a sample: a millisecond's worth, or each copy but the one that wakes the threads."""
        wanted = max(1, round(SAMPLE / self.once))
        return min(wanted, max(1, len(self.runs) - 1)) if self.cold else wanted

    def next(self) -> Callable:
        self.at = (self.at + 1) % len(self.runs) if self.cold else 0
        return self.runs[self.at]

    def sample(self, sweep: torch.Tensor) -> None:
        if self.cold:
            sweep.sum()
        settle()
        if self.once < LONG and (len(self.runs) > 1 or not self.cold):
            self.next()()
        runs = [self.next() for _ in range(self.calls)]
        cpu, start = time.process_time(), time.perf_counter()
        for run in runs:
            run()
        wall = time.perf_counter() - start
        self.samples.append(wall / len(runs))
        self.once = min(self.once, self.samples[-1])
        self.busy.append((time.process_time() - cpu) / wall)

    def result(self) -> dict:
        return {
            "median_us": median(self.samples) * 1e6,
            "min_us": min(self.samples) * 1e6,
            "samples": len(self.samples),
            "calls": self.calls,
            "cpu_per_wall": round(median(self.busy), 2) if self.busy else None,
        }


def take_turns(turns: dict[str, Turn], seconds: float, sweep: torch.Tensor) -> None:
    """Sample every arm in turns until `seconds` are over and each has enough."""
    end = time.perf_counter() + seconds
    fastest = min(turn.once for turn in turns.values())

    def needed(turn: Turn) -> int:
        slow = turn.once > SLOW * fastest
        if slow and turn.once > ENDLESS:
            return 1
        return FEW if slow or turn.once > LONG else ENOUGH

    while True:
        in_time = time.perf_counter() < end
        left = [t for t in turns.values() if len(t.samples) < needed(t) or (in_time and needed(t) == ENOUGH)]
        if not left:
            return
        for turn in left:
            turn.sample(sweep)
