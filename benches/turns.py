"""Timing arms in turns, with caches swept or left alone, and with each arm's threads quiet before the next one's turn.

Pools of threads spin after a call (on two cores OpenMP's were seen to for 10 ms, onnxruntime's for 40, OpenVINO's for
1), which gives their owner its best time and would rob the arm after it. So each turn ends by sleeping until the process
uses no processor time, and begins with a call that is not timed and wakes the arm's own threads.

Cold: 64 MB are read before a sample, so that L3 keeps none of the weights (what another core's L2 had, the other arms
have driven out since), and the sample runs each copy of the layer once. Hot: the same copy over and over.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import numpy as np

SAMPLE = 1e-3  # seconds one sample takes at least, where there are copies enough
LONG = 20e-3  # a call of this length needs no waking call, nor another copy; five times as long, and three samples do
FEW, ENOUGH = 3, 5  # samples
SLOW = 20.0  # times the fastest: few samples do, and one if it takes over ENDLESS
ENDLESS = 0.2  # seconds
QUIET = 0.1  # processor time over wall time of a process that waits


def settle() -> None:
    """Return when no thread of this process has spun for a millisecond, at the latest after 100."""
    for _ in range(100):
        before = time.process_time()
        time.sleep(1e-3)
        if time.process_time() - before < QUIET * 1e-3:
            return


def other_threads() -> float:
    """Processor time of all threads but this one; exact once they sleep."""
    return time.process_time() - time.thread_time()


@dataclass
class Turn:
    """One arm in a cell: its copies, and the samples taken so far."""

    runs: list[Callable]  # a call for each copy
    cold: bool
    first: float  # seconds of a call that was made already: where calls are long, the first sample
    samples: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)  # processor time over wall time, spinning included
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

    def sample(self, sweep: np.ndarray) -> None:
        if self.cold:
            sweep.sum()
        others = other_threads()
        if self.once < LONG and (len(self.runs) > 1 or not self.cold):
            self.next()()
        runs = [self.next() for _ in range(self.calls)]
        main, start = time.thread_time(), time.perf_counter()
        for run in runs:
            run()
        wall = time.perf_counter() - start
        main = time.thread_time() - main
        settle()
        self.samples.append(wall / len(runs))
        self.once = min(self.once, self.samples[-1])
        self.busy.append((main + other_threads() - others) / wall)

    def result(self) -> dict:
        return {
            "median_us": median(self.samples) * 1e6,
            "min_us": min(self.samples) * 1e6,
            "samples": len(self.samples),
            "calls": self.calls,
            "cpu_per_wall": round(median(self.busy), 2) if self.busy else None,
        }


def take_turns(turns: dict[str, Turn], seconds: float, sweep: np.ndarray) -> None:
    """Sample every arm in turns until `seconds` are over and each has enough."""
    end = time.perf_counter() + seconds
    fastest = min(turn.once for turn in turns.values())

    def needed(turn: Turn) -> int:
        slow = turn.once > SLOW * fastest
        if slow and turn.once > ENDLESS:
            return 1
        return FEW if slow or turn.once > 5 * LONG else ENOUGH

    while True:
        in_time = time.perf_counter() < end
        left = [t for t in turns.values() if len(t.samples) < needed(t) or (in_time and needed(t) == ENOUGH)]
        if not left:
            return
        for turn in left:
            turn.sample(sweep)
