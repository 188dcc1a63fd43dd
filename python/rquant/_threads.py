"""How many threads a call may use: `set_num_threads`, else RQUANT_NUM_THREADS, else torch's number, else the cores."""

import multiprocessing
import os
import sys

from . import _rquant

_chosen: int | None = None
# A worker shares the cores with its siblings: torch's DataLoader gives it one torch thread, and we follow.
_worker = multiprocessing.parent_process() is not None


_MOST = 2**16  # threads: what OpenMP counts in is small, and nobody has more cores


def _positive(value: object, argument: str) -> int:
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        number = 0
    if not 1 <= number <= _MOST:
        raise ValueError(f"{argument}: expected an integer in [1, {_MOST}], got {value!r}")
    return number


def set_num_threads(n: int) -> None:
    """Let each call of rquant use up to `n` threads in this process. Raises ValueError unless 1 <= n <= 65536."""
    _choose(_positive(n, "n"))


def _choose(n: int | None) -> None:
    """`None` for nobody's choice. The native module knows it too: torch calls it without Python."""
    global _chosen
    _rquant.choose_threads(n or 0, _worker)
    _chosen = n


def get_num_threads() -> int:
    """The threads that the next call may use."""
    torch = sys.modules.get("torch")
    # while torch is still being imported it has no get_num_threads yet
    ask_torch = getattr(torch, "get_num_threads", None)
    if _chosen is None:
        return ask_torch() if ask_torch else _rquant.default_threads()
    return min(_chosen, ask_torch()) if _worker and ask_torch else _chosen


def is_worker() -> bool:
    """Whether this process was made by another Python process to share its work."""
    return _worker


def _after_fork() -> None:
    global _worker
    _worker = True
    _choose(_chosen)


_environment = os.environ.get("RQUANT_NUM_THREADS")
_choose(None if _environment is None else _positive(_environment, "RQUANT_NUM_THREADS"))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
