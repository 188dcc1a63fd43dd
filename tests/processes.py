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
    """Bytes that `calls(many)`, a function that the script defines, leaves behind after `calls(few)`."""
    measured = f"calls({few})\nbefore = anonymous()\ncalls({many})\nprint(anonymous() - before)"
    return int(run(f"from memory import anonymous\n{script}\n{measured}"))
