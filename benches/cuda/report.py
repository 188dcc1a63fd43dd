"""What the steps have recorded, as one page."""

import json
from collections import defaultdict
from pathlib import Path

from goals import GOALS, ceilings_of, judged


def read(folder: Path, step: str) -> dict[str, dict]:
    path = folder / f"{step}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    records: dict[str, dict] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        records[record["key"]] = record
    return records


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def report(folder: Path) -> str:
    """Markdown, of what is there."""
    steps = {step: read(folder, step) for step in "ABCD"}
    machine = next((r["machine"] for r in steps.values() if "machine" in r), {})
    parts = ["# CUDA kernels", table(["", ""], [[k, v] for k, v in machine.items() if k != "key"])]
    for records, shown in zip(steps.values(), (correctness, speed, peers, decoding), strict=True):
        found = {key: record for key, record in records.items() if key != "machine"}
        if found:
            parts.append(shown(found))
    return "\n\n".join(parts) + "\n"


def correctness(records: dict[str, dict]) -> str:
    """Units by kernel: how many, the worst error, which are wrong."""
    kernels: dict[str, list[dict]] = defaultdict(list)
    for key, record in records.items():
        kernels[key.split()[0] if "worst" in record or "wrong" in record else key].append(record)
    rows = []
    for name, found in sorted(kernels.items()):
        wrong = [record for record in found if record.get("ok") is False]
        worst = max((record["worst"] for record in found if record.get("worst") is not None), default=None)
        skipped = next((record["skipped"] for record in found if "skipped" in record), "")
        rows.append([name, len(found), "" if worst is None else f"{worst:.2g}", len(wrong), skipped])
    wrong = [f"- {r['key']}: {r.get('error') or r}" for r in records.values() if r.get("ok") is False]
    head = ["kernel", "units", "worst relative error", "wrong", "not run"]
    return "\n\n".join(["## A: correctness", table(head, rows), *(["\n".join(wrong)] if wrong else [])])


def speed(records: dict[str, dict]) -> str:
    """Ceilings, goals, crossovers."""
    ceilings = ceilings_of(records)
    units = {"copy": (1e12, "TB/s")}
    peaks = [
        [name, f"{rate / units.get(name, (1e12, ''))[0]:.2f} {units.get(name, (1, 'TFLOP/s'))[1]}"]
        for name, rate in ceilings.items()
    ]
    rows = [judged(goal, records, ceilings) for goal in GOALS]
    others = [
        [key, f"{r['us']:.1f}", r.get("route", "")]
        for key, r in records.items()
        if "us" in r and not key.startswith("ceiling") and key not in {goal.key for goal in GOALS}
    ]
    steps = [
        [c["arithmetic"], f"int{c['bits']}", c["group_size"], f"{c['n']}x{c['k']}",
         ", ".join(f"{route} to {most}" if most else route for most, route in c["crossovers"])]
        for c in records.get("tune", {}).get("cells", [])
    ]  # fmt: skip
    return "\n\n".join([
        "## B: speed", table(["what torch reaches here", ""], peaks),
        table(["figure", "us", "floor, us", "goal", "reached", "met"], rows),
        table(["other figures", "us", "route"], others),
        table(["x", "weight", "group", "n x k", "rows of x"], steps),
    ])  # fmt: skip


def peers(records: dict[str, dict]) -> str:
    """Microseconds by arm and number of rows, a table for each shape."""
    shapes: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for key, r in records.items():
        arm, shape, rows = key.rsplit(" ", 2)
        shapes[shape][arm][rows] = (
            f"{r['us']:.1f}" if "us" in r else r.get("absent") or f"wrong: {r.get('error', '')[:60]}"
        )
    parts = ["## C: beside others (us)"]
    for shape, arms in shapes.items():
        counts = sorted(
            {rows for arm in arms.values() for rows in arm}, key=lambda text: int(text.removeprefix("m="))
        )
        parts.append(
            table([shape, *counts], [[arm, *(of.get(c, "") for c in counts)] for arm, of in arms.items()])
        )
    return "\n\n".join(parts)


def decoding(records: dict[str, dict]) -> str:
    """Tokens a second."""
    rows = [
        [
            key,
            *(f"{r[name]:.1f}" if name in r else "" for name in ("graph", "eager", "GiB")),
            r.get("error", ""),
        ]
        for key, r in records.items()
    ]
    return "\n\n".join(
        ["## D: decoding, tokens a second", table(["weights", "in a graph", "eager", "GiB", ""], rows)]
    )
