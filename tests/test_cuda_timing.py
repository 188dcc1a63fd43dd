"""The clock of tuning and benches, and the checks of graphs and streams, on a torch whose CUDA is made of paper."""

import contextlib
import math
from types import SimpleNamespace

import cuda_emulator
import pytest
import torch

from rquant.cuda import timing


class Graph:
    """Counts its replays."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        Graph.last = self
        self.replays += 1


class Event:
    """Between two of them each replay took 0.3 ms."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Graph.last.replays if hasattr(Graph, "last") else 0

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 0.3 * (end.at - self.at)


@pytest.fixture
def paper(monkeypatch):
    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    for name, value in {
        "CUDAGraph": Graph,
        "Event": Event,
        "Stream": lambda *_: stream,
        "current_stream": lambda: stream,
        "graph": lambda graph: contextlib.nullcontext(),
        "stream": lambda stream: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.delattr(Graph, "last", raising=False)


def test_a_call_is_timed_in_a_graph(paper):
    """Each is made once before the capture and once in it; the time is a call's, not the graph's."""
    made = []
    us = timing.GraphTimer()("what", [lambda i=i: made.append(i) for i in range(4)])
    assert made == [0, 1, 2, 3] * 2
    assert us == pytest.approx(300 / 4)
    assert Graph.last.replays == 1 + timing.SAMPLES * math.ceil(timing.SAMPLE_MS / 0.3)


@pytest.mark.skipif(cuda_emulator.COMPILER is None, reason="no C++ compiler for the emulator")
def test_graphs_and_streams_are_checked(cuda_driver, cubins):
    """A replay that does not follow its input is found."""
    cuda_emulator.run(
        f"""
import contextlib
from types import SimpleNamespace
sys.path.insert(0, {str(cuda_emulator.ROOT / "benches/cuda")!r})
import streams

stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
torch.cuda.Stream, torch.cuda.current_stream = lambda *_: stream, lambda: stream
torch.cuda.stream, torch.cuda.synchronize = lambda stream: contextlib.nullcontext(), lambda: None
streams.ROWS = (1, 9, 17)
device = torch.device("cpu")

def replays(calls):
    for call in calls:
        call()
    return SimpleNamespace(replay=lambda: [call() for call in calls])

def stays(calls):
    replays(calls)
    return SimpleNamespace(replay=lambda: None)

streams.capture = replays
assert streams.graphs(device) == {{"ok": True, "wrong": []}}
streams.capture = stays
found = streams.graphs(device)
assert not found["ok"] and "tiled m=17" in found["wrong"] and "small m=1: wrong answer" in found["wrong"]
assert streams.side_stream(device, 64)["ok"]
streams.shutil.which = lambda name: None
streams.Path.glob = lambda *_: iter(())
assert streams.sanitizer("memcheck", None)["skipped"] == "compute-sanitizer is not installed"
""",
        cuda_driver,
        cubins,
    )
