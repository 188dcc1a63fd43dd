"""Scripts in a process of their own, which finds the tests' modules."""

import os
import subprocess
import sys
from pathlib import Path


def run(script: str, **environment: str) -> str:
    """What it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def leaked(script: str, few: int, many: int) -> int:
    """KiB by which `calls(many)`, a function that the script defines, raises the most memory that it had after `calls(few)`."""
    most = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    return int(
        run(
            f"{script}\nimport resource\ncalls({few})\nbefore = {most}\ncalls({many})\nprint({most} - before)"
        )
    )
