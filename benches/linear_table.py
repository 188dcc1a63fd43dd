"""Tables and a picture of what bench_linear.py measured.

    python benches/linear_table.py benches/results/linear-*t-*.json
    python benches/linear_table.py --limits limits.json benches/results/linear-*t-*.json

A ratio over 1 is in rquant's favour. "peer" is the fastest of the same bits, arithmetic and group size, or, where none
has that group size, of any (`*`); "any group" is the fastest of all. A scheme fed float32 has peers fed float32; one fed
bfloat16 (`-bf16`) has all of them. With limits, `{"vnni_gops": {"1": .., "2": ..},
"fma_gflops": {..}, "bf16_gflops": {..}, "read_gbps": {..}}`, a column says what part of the time a call takes is max(bytes / bandwidth,
operations / peak); bytes count where weights come from memory.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean
from typing import NamedTuple

SPARE = 0.25  # threads' worth of processor time that an arm may use over one, before it is named


class Row(NamedTuple):
    """One rquant scheme in one cell."""

    cell: dict
    name: str
    us: float
    float32: float
    peer: dict | None  # the fastest of the group size
    same_group: bool
    any_peer: dict | None
    limit: float | None

    @property
    def to_peer(self) -> float | None:
        return self.peer and self.peer["median_us"] / self.us

    @property
    def to_any(self) -> float | None:
        return self.any_peer and self.any_peer["median_us"] / self.us

    @property
    def to_float32(self) -> float:
        return self.float32 / self.us

    @property
    def where(self) -> str:
        c = self.cell
        return f"{c['k']}x{c['n']} m {c['m']}, {c['threads']} threads, {c['weights']}, {self.name}"


def dtype(arm: dict) -> str:
    return arm.get("dtype", "float32")


def fastest(arms: list[dict]) -> dict | None:
    return min(arms, key=lambda arm: arm["median_us"], default=None)


def limit_us(cell: dict, arm: dict, limits: dict) -> float:
    """Microseconds below which this machine cannot do it."""
    threads, integer = str(cell["threads"]), cell["kind"].endswith("integer")
    brain = dtype(arm) == "bfloat16" and "bf16_gflops" in limits
    peak = limits["vnni_gops" if integer else "bf16_gflops" if brain else "fma_gflops"][threads]
    operations = 2 * cell["m"] * cell["n"] * cell["k"] / peak
    read = arm["bytes"] / limits["read_gbps"][threads] if cell["weights"] == "cold" else 0
    return max(operations, read) / 1e3


def rows_of(result: dict, limits: dict | None) -> list[Row]:
    cell = result["cell"]
    timed = [arm for arm in result["arms"] if "median_us" in arm]
    ours = [arm for arm in timed if arm["name"].startswith("rquant")]
    others = [arm for arm in timed if arm not in ours and arm["name"] != "float32"]
    float32 = next(arm["median_us"] for arm in timed if arm["name"] == "float32")
    rows = []
    for arm in ours:
        peers = [peer for peer in others if dtype(arm) == "bfloat16" or dtype(peer) == "float32"]
        same = [peer for peer in peers if peer["group"] == arm["group"]]
        limit = limit_us(cell, arm, limits) / arm["median_us"] if limits else None
        rows.append(
            Row(
                cell,
                arm["name"],
                arm["median_us"],
                float32,
                fastest(same or peers),
                bool(same),
                fastest(peers),
                limit,
            )
        )
    return rows


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def table(rows: list[Row]) -> str:
    limited = rows[0].limit is not None
    heads = "k x n|m|threads|weights|scheme|µs|float32 µs|to float32|peer|µs|to peer|any group|to it"
    heads = heads.split("|") + ["of limit"] * limited
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        c, peer, best = row.cell, row.peer, row.any_peer
        cells = [f"{c['k']}x{c['n']}", c["m"], c["threads"], c["weights"], row.name, f"{row.us:,.1f}"]
        cells += [f"{row.float32:,.1f}", ratio(row.to_float32)]
        cells += (
            [peer["name"] + "*" * (not row.same_group), f"{peer['median_us']:,.1f}"] if peer else ["", ""]
        )
        cells += [ratio(row.to_peer), best["name"] if best else "", ratio(row.to_any)]
        cells += [f"{row.limit:.0%}"] if limited else []
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def below(rows: list[Row], title: str, value) -> str:
    behind = sorted((row for row in rows if value(row) and value(row) < 1), key=value)
    lines = [f"- {ratio(value(row))} {row.where}" for row in behind]
    return "\n".join([f"{title}: {len(behind)} of {len(rows)}", "", *lines])


def means(rows: list[Row]) -> str:
    """Geometric means by class, input and m."""
    sums = defaultdict(list)
    for row in rows:
        kind = row.cell["kind"] + " bf16" * row.name.endswith("-bf16")
        sums[kind, row.cell["m"]].append(row)
    kinds, sizes = (sorted({key[i] for key in sums}) for i in (0, 1))
    lines = ["| class | " + " | ".join(f"m {m}" for m in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    for kind in kinds:
        cells = []
        for m in sizes:
            found = sums[kind, m]
            to_peer = [row.to_peer for row in found if row.to_peer]
            cells.append(f"{geometric_mean(to_peer):.2f}x " if to_peer else "")
            cells[-1] += f"({geometric_mean(row.to_float32 for row in found):.2f}x)" if found else ""
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def remarks(results: list[dict]) -> str:
    """Arms that did not run or were wrong, those that used more threads than given, and notes."""
    found = defaultdict(set)
    for result in results:
        cell = result["cell"]
        for arm in result["arms"]:
            where = f"{cell['k']}x{cell['n']}"
            if arm["status"] == "absent":
                found[f"absent: {arm['name']}: {arm['message'].strip().splitlines()[0]}"].add(where)
            elif arm["status"] != "ok":
                found[f"{arm['status']}: {arm['name']} ({cell['kind']}), error {arm['error']}"].add(where)
            elif cell["threads"] == 1 and (arm["cpu_per_wall"] or 0) > 1 + SPARE:
                found[f"more than 1 thread at work: {arm['name']}"].add(f"{where} m {cell['m']}")
            if arm.get("rounds_x") is False:
                found[f"does not quantize activations though told to: {arm['name']}"].add(where)
            if arm["note"]:
                found[f"note: {arm['name']}: {arm['note']}"] |= set()
    lines = [
        f"- {text}" + (f" [{', '.join(sorted(where))}]" if where else "") for text, where in found.items()
    ]
    return "\n".join(sorted(lines))


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--limits", type=Path, help="JSON of the machine's limits")
    parser.add_argument("--picture", type=Path, help="PNG file (default: linear.png beside the first file)")
    args = parser.parse_args()
    limits = json.loads(args.limits.read_text()) if args.limits else None
    records = [json.loads(file.read_text()) for file in args.files]
    records = [r for r in records if r["cells"] and "cell" in r["cells"][0]]  # not those of earlier benches
    results = sorted(
        (result for record in records for result in record["cells"]),
        key=lambda r: [r["cell"][key] for key in ("kind", "k", "n", "threads", "weights", "m")],
    )
    rows = [row for result in results for row in rows_of(result, limits)]
    if not rows:
        parser.error("no cells in these files")
    for kind in sorted({row.cell["kind"] for row in rows}):
        print(f"### {kind}\n\n{table([row for row in rows if row.cell['kind'] == kind])}\n")
    print(f"### Geometric means: to the peer (to float32)\n\n{means(rows)}\n")
    print("### Summary\n")
    print(below(rows, "Slower than the peer of the same group size", lambda row: row.to_peer), "\n")
    print(below(rows, "Slower than the fastest peer of any group size", lambda row: row.to_any), "\n")
    print(below(rows, "Slower than nn.Linear in float32", lambda row: row.to_float32), "\n")
    print(f"### Remarks\n\n{remarks(results)}\n")
    machine = max((record["machine"] for record in records), key=lambda m: m["date"])
    print(f"{machine['cpu']}, {machine['isa']}, rquant {machine['rquant']}, {machine['date']}; ", end="")
    print(", ".join(f"{name} {version}" for name, version in machine["packages"].items()))

    try:
        from linear_picture import draw
    except ImportError as missing:
        print(f"\nno picture: {missing}")
        return
    picture = args.picture or args.files[0].parent / "linear.png"
    draw(rows, picture)
    print(f"\npicture: {picture}")


if __name__ == "__main__":
    main()
