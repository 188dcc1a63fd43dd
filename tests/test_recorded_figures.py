"""The tables of benches/README.md on static int8 networks say what the recorded runs say."""

import json
import re
from pathlib import Path

import pytest

BENCHES = Path(__file__).parent.parent / "benches"
NETS = {"ResNet18": "resnet18", "MobileNetV2": "mobilenet_v2"}


def table(heading):
    """Cells of the rows of the first table under a heading."""
    text = (BENCHES / "README.md").read_text(encoding="utf-8").split(f"### {heading}")[1].split("\n###")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ]
    return rows[2:]


def recorded(name):
    return json.loads((BENCHES / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_static_networks():
    cells = {
        (c["net"], c["batch"], c["threads"]): c["arms"]
        for t in (1, 2)
        for c in recorded(f"vision-{t}t")["cells"]
    }
    rows = table("Static int8 networks")
    assert len(rows) == len(cells) == 8
    speedups = []
    for net, batch, threads, float32, eager, traced, peer, ratio in rows:
        times = {arm["name"]: arm["median_us"] / 1e3 for arm in cells[NETS[net], int(batch), int(threads)]}
        if ratio.endswith("*"):  # measured again, in a run of its own
            continue
        of_torch = min(
            v for name, v in times.items() if name in ("float32", "float32 folded", "float32 traced")
        )
        others = {n: v for n, v in times.items() if not n.startswith("rquant") and "float32" not in n}
        best = min(others, key=others.get)
        assert re.sub(" (QDQ|QOperator)", "", best).replace("ort", "onnxruntime") == peer.split(", ")[1]
        shown = [float(float32), float(eager), float(traced), float(peer.split(",")[0])]
        for value, time in zip(
            shown, (of_torch, times["rquant"], times["rquant traced"], others[best]), strict=True
        ):
            assert value == pytest.approx(time, rel=0.005, abs=0.5 if time > 20 else 0.05)
        ratios = [float(x) for x in re.findall(r"([\d.]+)x", ratio)]
        assert ratios == [round(others[best] / times[name], 2) for name in ("rquant", "rquant traced")]
        speedups.append(of_torch / times["rquant traced"])
    said = f"{min(speedups):.1f} to {max(speedups):.1f} times"
    for page in ("benches/README.md", "README.md"):
        assert f"{said} f" in (BENCHES.parent / page).read_text(encoding="utf-8"), page
    guide = (BENCHES.parent / "docs/vision.md").read_text(encoding="utf-8")
    assert f"a {min(speedups):.1f}th to a {max(speedups):.1f}th" in guide


def test_efficientnet():
    found = {}
    for row in recorded("efficientnet")["rows"]:
        column = 2 if row["scales"] != "a channel" else int(row["zero_point"] == "0")
        found.setdefault(row["method"], {})[column] = f"{row['cosine']:.4f} ({row['least']:.3f})"
    assert {name: dict(enumerate(cells)) for name, *cells in table("EfficientNet-Lite0")} == found
