"""What a model's numbers look like: histograms as numbers, and as pictures where matplotlib is there (`rquant[viz]`)."""

from .charts import (
    Bars,
    Ranged,
    draw_bars,
    draw_histograms,
    draw_lines,
    draw_ranges,
    png,
    require_matplotlib,
)
from .histogram import Histogram, histogram

__all__ = [
    "Bars",
    "Histogram",
    "Ranged",
    "draw_bars",
    "draw_histograms",
    "draw_lines",
    "draw_ranges",
    "histogram",
    "png",
    "require_matplotlib",
]
