"""The demo's two real models and the text they are tried on, all out of pip packages: no download."""

import importlib.util
from pathlib import Path


def package_dir(name: str) -> Path:
    """Folder of an installed package, found without importing it: that would load far more than the data."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the demo's data package {name!r} is missing: make demo installs it")
    return Path(spec.origin).parent
