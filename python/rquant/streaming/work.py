"""Where a conversion keeps what it has done, so that it goes on after an interruption and puts its result in place whole.

`OUT.partial/` holds the result in `files/`, a journal that says what of the file in progress is safely on disk, and a lock.
A file in progress is called `*.part`. At the end the result, a file or a directory, is renamed to `OUT`.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..io.sync import sync

try:
    import fcntl
except ImportError:  # not POSIX: nothing keeps two runs apart
    fcntl = None  # type: ignore[assignment]

Job = dict[str, Any]  # all that decides what comes out, in JSON types


class Workspace:
    """Made by `workspace`. `progress` is of the file in progress: its name, wide tensors, checksums of what is written."""

    def __init__(self, out: Path, folder: Path, job: Job) -> None:
        self.out, self.folder, self.files = out, folder, folder / "files"
        self._job = job
        self._journal = folder / "journal.json"
        try:
            journal = json.loads(self._journal.read_bytes())
        except (OSError, ValueError):
            journal = {}
        same = journal.get("job") == job
        self.progress: dict[str, Any] = journal["progress"] if same else {}
        complete = self.progress.get("complete", False)
        self.finished = complete and is_taken(out) and not (self.files / out.name).exists()
        if not same:
            shutil.rmtree(self.files, ignore_errors=True)
            self.commit({})
        self.files.mkdir(exist_ok=True)

    def commit(self, progress: dict[str, Any]) -> None:
        """Remember progress, whose data must be on disk by now."""
        self.progress = progress
        new = self._journal.with_suffix(".new")
        new.write_text(json.dumps({"job": self._job, "progress": progress}), encoding="utf-8")
        sync(new)
        os.replace(new, self._journal)

    def publish(self) -> None:
        """Put `files/NAME`, a file or a directory, in place as `OUT`, whose name is NAME. All must be on disk by now."""
        self.commit({"complete": True})
        os.replace(self.files / self.out.name, self.out)
        sync(self.out.absolute().parent)
        self.finished = True


def is_taken(out: Path) -> bool:
    """Whether something is there that a result would replace; an empty directory is nothing."""
    return out.exists() and not (out.is_dir() and not any(out.iterdir()))


@contextlib.contextmanager
def workspace(out: Path, job: Job) -> Iterator[Workspace]:
    """The workspace of `out` for this process alone; removed once the result is in place.

    Raises ValueError if something is there that is not ours or another process works in it.
    """
    folder = out.with_name(out.name + ".partial")
    ours = (folder / "lock").is_file()
    if is_taken(folder) and not ours:
        raise ValueError(
            f"{folder}: expected to make this directory, but it exists; remove it or give another OUT"
        )
    if is_taken(out) and not ours:
        raise ValueError(f"{out}: exists already; remove it or give another OUT")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "ab") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(f"{out}: another process is writing it") from None
        work = Workspace(out, folder, job)
        if is_taken(out) and not work.finished:
            raise ValueError(f"{out}: exists already; remove it or give another OUT")
        yield work
        if work.finished:
            shutil.rmtree(work.files)  # before the journal, which says that all is in place
            shutil.rmtree(folder)
