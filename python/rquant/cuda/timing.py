"""Times on the device: a graph of calls, replayed between two events, so that no launch is waited for."""

import math
from collections.abc import Callable, Sequence
from statistics import median

import torch

SAMPLES = 5
SAMPLE_MS = 2.0
"""Milliseconds that one sample takes at least."""
MOST_REPLAYS = 200


class GraphTimer:
    """Microseconds of a call: of calls on operands of their own, captured one after another and replayed."""

    def __call__(self, what: object, calls: Sequence[Callable[[], object]]) -> float:
        """`what` is for others who time."""
        graph = capture(calls)
        once = _milliseconds(graph, 1)
        replays = min(max(1, math.ceil(SAMPLE_MS / max(once, 1e-3))), MOST_REPLAYS)
        samples = [_milliseconds(graph, replays) / replays for _ in range(SAMPLES)]
        return median(samples) / len(calls) * 1e3


def capture(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """The graph of these calls. Each is made once before: kernels are loaded, libraries have their workspaces."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def _milliseconds(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
