"""What a model's numbers look like: histograms as numbers, and as pictures where matplotlib is there (`rquant[viz]`)."""

from .charts import Bars, draw_bars, draw_histograms, draw_lines, png, require_matplotlib
from .histogram import Histogram, histogram

__all__ = [
    "Bars",
    "Histogram",
    "draw_bars",
    "draw_histograms",
    "draw_lines",
    "histogram",
    "png",
    "require_matplotlib",
]
