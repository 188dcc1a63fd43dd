"""What a step has found so far, a JSON line a unit: a run that is stopped, or out of time, goes on where it was."""

import json
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from rquant.progress import bar


class Book:
    """The records of one step, in `folder/STEP.jsonl`."""

    def __init__(self, folder: Path, step: str, minutes: float, fresh: bool = False) -> None:
        """`minutes`: after these no new unit is begun. `fresh`: forget what was recorded."""
        self.step, self.path = step, folder / f"{step}.jsonl"
        self.end = time.monotonic() + 60 * minutes
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            self.path.unlink(missing_ok=True)
        self.records: dict[str, dict] = {}
        text = self.path.read_text() if self.path.exists() else ""
        if not text.endswith("\n") and text:
            with self.path.open("a") as file:
                file.write("\n")
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # cut short: done again
                continue
            self.records[record["key"]] = record
        self.left = 0

    def add(self, key: str, record: dict) -> dict:
        self.records[key] = {"key": key, **record}
        with self.path.open("a") as file:
            file.write(json.dumps(self.records[key]) + "\n")
        return self.records[key]

    def fill(self, units: Iterable[tuple[str, Callable[[], dict]]]) -> None:
        """Run what is not recorded yet, or failed. A unit that raises is recorded with its error, and the next one begins."""
        wanted = [(key, run) for key, run in units if self.records.get(key, {"ok": False}).get("ok") is False]
        with bar(len(wanted), f"step {self.step}") as shown:
            for i, (key, run) in enumerate(wanted):
                if time.monotonic() > self.end:
                    self.left = len(wanted) - i
                    return
                shown.set_description(f"{self.step}: {key}")
                try:
                    self.add(key, run())
                except Exception as error:
                    message = f"{type(error).__name__}: {error}"
                    self.add(key, {"ok": False, "error": message, "trace": traceback.format_exc(limit=-4)})
                shown.update()

    @property
    def failed(self) -> list[dict]:
        """Records of what is not as it should be."""
        return [record for record in self.records.values() if record.get("ok") is False]
