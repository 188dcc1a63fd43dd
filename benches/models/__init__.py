"""The parts of `bench_models.py`: models, arms that run them, GGUF files, turns, tables."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "examples"))  # zoo, measure
