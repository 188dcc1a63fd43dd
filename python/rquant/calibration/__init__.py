"""Static activation scales: a model runs on samples, and the ranges seen become the scales it computes with from then on."""

from .context import Calibration
from .report import CalibrationReport
from .run import calibrate
from .statistics import Statistics

__all__ = ["Calibration", "CalibrationReport", "Statistics", "calibrate"]
