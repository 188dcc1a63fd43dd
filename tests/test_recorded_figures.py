"""The tables of benches/README.md on static int8 networks say what the recorded runs say."""

import json
import sys
from pathlib import Path

BENCHES = Path(__file__).parent.parent / "benches"
sys.path.append(str(BENCHES))

from vision.report import compared, summary  # noqa: E402


def section(heading):
    text = (BENCHES / "README.md").read_text(encoding="utf-8")
    return text.split(f"### {heading}")[1].split("\n###")[0]


def recorded(name):
    return json.loads((BENCHES / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_static_networks():
    """The table is the one that the bench prints; what other pages say of it is so."""
    cells = [cell for threads in (1, 2) for cell in recorded(f"vision-{threads}t")["cells"]]
    assert len(cells) == 8
    assert summary(cells) in section("Static int8 networks")
    speedups = [float32 / times["rquant traced"] for _, float32, _, times in compared(cells)]
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
    lines = [
        line.strip("|").split("|") for line in section("EfficientNet-Lite0").splitlines() if line[:1] == "|"
    ]
    assert {name.strip(): dict(enumerate(map(str.strip, cells))) for name, *cells in lines[2:]} == found
