"""One layer's cells: pack every arm, check its answer, time the arms in turns."""

import gc
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from check import check_linear
from peers import Arm, Kind, Layer, arms_of
from peers.ours import linear_of
from peers.rounding import round_weight
from turns import LONG, Turn, settle, take_turns

# Relative error (2-norm, against float64 and the float weight) that plain rounding of normal weights stays below: 1.4
# is no relation at all. Measured: 8 bits 0.005 to 0.017 (activations at one scale a tensor), 4 bits 0.08 to 0.12,
# 2 bits 0.36 to 0.57.
TOLERANCE = {32: 1e-5, 8: 0.03, 4: 0.16, 2: 0.7}
CHECKED = 256  # output channels
STREAMED = 8e6  # bytes that a cold sample reads where calls are short: the copies hold as many, up to COPIES
COPIES = 16
ONE = 64e6  # bytes from which one copy does


class Cell(NamedTuple):
    """What a figure is of."""

    k: int
    n: int
    m: int
    threads: int
    kind: str
    weights: str  # "cold": from memory; "hot": from cache


def rounds_input(run: Callable, x: torch.Tensor, first: torch.Tensor) -> bool:
    """Whether activations are quantized, as they should be here: one changed by 1e-4 of itself then changes nothing."""
    before = x[0, 0].item()
    x[0, 0] *= 1 + 1e-4
    same = bool((run()[0] == first).all())
    x[0, 0] = before
    return same


def timed(run: Callable) -> tuple[float, torch.Tensor]:
    start = time.perf_counter()
    y = run()
    return time.perf_counter() - start, y


class LayerBench:
    """Every arm packed for one weight; kept over the cells that differ in m and in hot or cold."""

    def __init__(
        self,
        kind: Kind,
        k: int,
        n: int,
        part: list[str] | None,
        crashed: dict[str, str],
        begin: Callable[[str], object],
    ) -> None:
        """`part`: words of the arms' names, or all; `crashed`: why to leave an arm alone; `begin`: told each arm's name."""
        self.kind, self.crashed, self.begin = kind, crashed, begin
        torch.manual_seed(0)
        self.weight = torch.randn(n, k) / k**0.5
        self.channels = torch.randperm(n)[:CHECKED]
        self.arms = arms_of(kind, part)
        self.packed: dict[str, list[Layer] | Exception] = {}
        self.exact: dict[str, torch.Tensor] = {}  # our arms' weights as their integers say, of `channels`

    def free(self) -> None:
        self.packed.clear()
        self.exact.clear()
        round_weight.cache_clear()
        gc.collect()

    def layers(self, arm: Arm) -> list[Layer]:
        """The arm's copies, packed once. Raises what packing them raised."""
        if arm.name not in self.packed:
            bits = 32 if arm.name == "float32" else self.kind.bits
            size = self.weight.numel() * bits / 8
            count = 1 if size > ONE else 1 + min(COPIES, math.ceil(STREAMED / size))
            try:
                self.packed[arm.name] = arm.pack(self.weight, count)
            except Exception as error:
                self.packed[arm.name] = error
        found = self.packed[arm.name]
        if isinstance(found, Exception):
            raise found
        return found

    def check(self, arm: Arm, run: Callable, x: torch.Tensor) -> dict:
        """Relative error of one run, and its time; rquant's must be exact for its own integers besides."""
        want = x.double() @ self.weight[self.channels].double().T
        settle()
        first, y = timed(run)
        if (
            first > LONG and len(x) <= 64
        ):  # the first call makes some layers ready, which looks like a long one
            first = min(first, timed(run)[0])
        found = {"error": None, "status": "wrong answer", "first_us": first * 1e6}
        if y.shape != (len(x), len(self.weight)) or not y.isfinite().all():
            return found
        found["error"] = ((y[:, self.channels].double() - want).norm() / want.norm()).item()
        bits = 32 if arm.name == "float32" else self.kind.bits
        if found["error"] <= TOLERANCE[bits]:
            found["status"] = "ok"
        if arm.ours:
            layer = self.layers(arm)[0].keep[0]
            if arm.name not in self.exact:
                self.exact[arm.name] = layer.weight.dequantize()[self.channels]
            linear = linear_of(self.weight)
            given = x.to(getattr(torch, arm.dtype))
            check_linear(layer, linear, given, self.kind.integer, self.channels, self.exact[arm.name])
        if self.kind.integer and bits < 32 and len(x) <= 16:
            found["rounds_x"] = rounds_input(run, x, y[0].clone())
        return found

    def measure(self, cell: Cell, seconds: float, sweep: np.ndarray) -> list[dict]:
        """A record of each arm: its figures, or why there are none."""
        x = torch.randn(cell.m, cell.k, generator=torch.Generator().manual_seed(cell.m))
        records, turns = {}, {}
        with torch.inference_mode():
            for arm in self.arms:
                record = {
                    "name": arm.name,
                    "group": arm.group,
                    "dtype": arm.dtype,
                    "note": arm.note,
                    "status": "ok",
                }
                records[arm.name] = record
                self.begin(arm.name)
                try:
                    if arm.name in self.crashed:
                        raise RuntimeError(self.crashed[arm.name])
                    layers = self.layers(arm)
                    record["bytes"] = layers[0].bytes
                    runs = [layers[0].bind(x)]
                    record |= self.check(arm, runs[0], x)
                    if record["status"] != "ok":
                        continue
                    cold, first = cell.weights == "cold", record["first_us"] / 1e6
                    if cold and first < LONG:
                        runs += [layer.bind(x) for layer in layers[1:]]
                    turns[arm.name] = Turn(runs, cold, first)
                except Exception as error:
                    if arm.ours:
                        raise
                    record |= {"status": "absent", "message": f"{type(error).__name__}: {error}"}
            self.begin("")
            take_turns(turns, seconds, sweep)
        for name, turn in turns.items():
            records[name] |= turn.result()
        return list(records.values())
