"""What each kernel should reach, and whether step B says that it does."""

from typing import NamedTuple


class Goal(NamedTuple):
    """Of the figure `key`: `kind` of bound, and `bound`; `other` is the figure it is set beside."""

    key: str
    kind: str
    bound: float
    other: str = ""


GOALS = (
    Goal("rows m=1", "us", 3),
    Goal("rows m=4096", "floor", 0.70),
    Goal("W4A16 square m=1", "floor", 0.60),
    Goal("W4A16 square m=8", "times", 1.10, "W4A16 square m=1"),
    Goal("W4A16 wide m=1", "floor", 0.75),
    Goal("W8A16 square m=1", "floor", 0.75),
    Goal("W8A16 wide m=1", "floor", 0.75),
    Goal("W2A16 square m=1", "floor", 0.45),
    Goal("W2A16 square m=1", "times", 1 / 1.25, "W4A16 square m=1"),
    Goal("W4A16 square m=16", "floor", 0.60),
    Goal("W4A16 square m=32", "floor", 0.60),
    Goal("W4A16 square m=64", "us", 28),
    Goal("W4A16 square m=2048", "times", 1 / 0.90, "fp16 square m=2048"),
    Goal("dequantize int8 square", "floor", 0.85),
    Goal("dequantize int4 square", "floor", 0.85),
    Goal("dequantize int2 square", "floor", 0.85),
    Goal("W8A8 square m=16", "floor", 0.65),
    Goal("W8A8 square m=2048", "rate", 600e12),
    Goal("W4A8 square m=64", "times", 1.0, "W4A16 square m=64"),
    Goal("W4A8 square m=2048", "times", 1 / 0.8, "W8A8 square m=2048"),
    Goal("LLM.int8 square m=2048", "plain", 1.15),
)
"""Set for an H200; on another device they are what they say."""


def floor_us(record: dict, ceilings: dict[str, float]) -> float:
    """The time in which this device could do it: bytes at the speed of a copy, operations at that of torch's product."""
    return max(record["bytes"] / ceilings["copy"], record["flop"] / ceilings["float16"]) * 1e6


def ceilings_of(records: dict[str, dict]) -> dict[str, float]:
    """Bytes and operations a second, as far as they were measured."""
    return {
        key.removeprefix("ceiling "): record["rate"]
        for key, record in records.items()
        if key.startswith("ceiling ") and "rate" in record
    }


def judged(goal: Goal, records: dict[str, dict], ceilings: dict[str, float]) -> list[str]:
    """A row: figure, microseconds, floor, goal, what was reached, whether that is it."""
    record, other = records.get(goal.key, {}), records.get(goal.other, {})
    us = record.get("us")
    known = us is not None and {"copy", "float16"} <= ceilings.keys()
    floor = f"{floor_us(record, ceilings):.1f}" if known and record["bytes"] else ""
    text = {
        "us": f"at most {goal.bound:g} us",
        "floor": f"{goal.bound:.0%} of the floor",
        "times": f"at most {goal.bound:.2f} of {goal.other}",
        "plain": f"at most {goal.bound:.2f} of W8A8",
        "rate": f"{goal.bound / 1e12:.0f} TOPS",
    }[goal.kind]
    if us is None or (goal.kind == "floor" and not known) or (goal.kind == "times" and "us" not in other):
        return [goal.key, "", floor, text, "not measured", ""]
    if goal.kind == "us":
        reached, met = f"{us:.1f} us", us <= goal.bound
    elif goal.kind == "floor":
        share = floor_us(record, ceilings) / us
        reached, met = f"{share:.0%}", share >= goal.bound
    elif goal.kind == "rate":
        rate = record["flop"] / us * 1e6
        reached, met = f"{rate / 1e12:.0f} TOPS", rate >= goal.bound
    else:
        ratio = us / (other["us"] if goal.kind == "times" else record["plain_us"])
        reached, met = f"{ratio:.2f}", ratio <= goal.bound
    return [goal.key, f"{us:.1f}", floor, text, reached, "yes" if met else "no"]
