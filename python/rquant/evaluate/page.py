"""An outcome as one HTML file: tables, and pictures inside it."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..viz import draw_bars, draw_lines, png
from .layers import Sensitivity, decibels
from .outcome import Outcome

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px }
th, td { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: right; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% }
"""
SHOWN = 15  # layers of each scheme, the worst


def html_report(outcome: Outcome) -> str:
    """One page that needs no other file. Raises ImportError without matplotlib, for its pictures."""
    parts = [f"<h1>{escape(outcome.model or outcome.kind)}</h1>"]
    header = ["scheme", *(column.title for column in outcome.columns)]
    parts.append(_table(header, outcome.cells()))
    if panels := outcome.bars():
        parts.append(_picture(draw_bars(panels), ", ".join(panel.title for panel in panels)))
    if outcome.layers:
        lines = {name: [_known(row) for row in found.rows] for name, found in outcome.layers.items()}
        parts.append("<h2>Signal to quantization noise of each layer</h2>")
        figure = draw_lines(lines, "layer, in the model's order", "SQNR of its output, dB")
        parts.append(_picture(figure, "SQNR by layer"))
    parts += [_worst(name, found) for name, found in outcome.layers.items()]
    parts.append("<h2>How it was measured</h2>")
    parts.append(
        _table(["setting", "value"], [[key, _said(value)] for key, value in outcome.settings.items()])
    )
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(outcome.model)}</title>\n'
        f"<style>{_STYLE}</style>\n{body}\n</html>\n"
    )


def _known(row: Any) -> float:
    return row.weight_sqnr if row.output_sqnr is None else row.output_sqnr  # type: ignore[no-any-return]


def _worst(name: str, found: Sensitivity) -> str:
    rows = [[r.name, r.scheme, decibels(r.weight_sqnr), decibels(r.output_sqnr)] for r in found.worst[:SHOWN]]
    title = f"<h3>{escape(name)}: the {len(rows)} worst of {len(found.rows)} layers</h3>"
    return title + _table(["layer", "scheme", "weight, dB", "output, dB"], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", line(header, "th"), *(line(row, "td") for row in rows), "</table>"])


def _picture(figure: Any, title: str) -> str:
    data = base64.b64encode(png(figure)).decode()
    return f'<p><img alt="{escape(title)}" src="data:image/png;base64,{data}"></p>'


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {inner}" for key, inner in value.items())
    return "none" if value is None else str(value)
