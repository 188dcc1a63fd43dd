"""The memory of this process, in bytes. (`resource`'s peak would be, in a process that another starts, the larger one of both.)"""

import os

TOLD = os.path.exists("/proc/self/status")


def _status(name: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def peak() -> int:
    """The most that was there at any time, mapped files included."""
    return _status("VmHWM")


def anonymous() -> int:
    """What is there now and is no file's."""
    return _status("RssAnon")
