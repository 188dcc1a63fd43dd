"""Run README's first python block in an empty folder and compare what it prints with the text block that follows.

    python tests/readme.py README.md

Needs nothing but rquant and torch, so that a freshly installed wheel can be tried with it.
"""

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path


def first_example(readme: str) -> tuple[str, str]:
    """The code and the output README promises for it."""
    found = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", readme, re.DOTALL)
    if found is None:
        raise SystemExit("README has no python block followed by a text block")
    return found[1], found[2]


def main() -> None:
    code, promised = first_example(Path(sys.argv[1]).read_text(encoding="utf-8"))
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed):
        os.chdir(folder)
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
        os.chdir("/")
    print(printed.getvalue(), end="")
    if printed.getvalue() != promised:
        raise SystemExit(f"README promises:\n{promised}")


if __name__ == "__main__":
    main()
