"""Merging a module into the one before it, where a run of the model shows that they follow each other."""

from .batchnorm import fold_bn
from .report import FoldReport, FoldRow

__all__ = ["FoldReport", "FoldRow", "fold_bn"]
