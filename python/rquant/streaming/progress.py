"""A bar over the source's bytes, where tqdm is installed and a person looks on."""

from typing import Any


class Progress:
    """Counts bytes: `resumed` are those that an earlier run had done, `moved` those of this one."""

    def __init__(self, total: int, shown: bool) -> None:
        self.moved = self.resumed = 0
        self._bar: Any = None
        if shown:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            bar = tqdm(total=total, unit="B", unit_scale=True, disable=None, desc="quantizing")
            self._bar = None if bar.disable else bar

    def add(self, count: int) -> None:
        """So many bytes more; fewer, where something is done again."""
        self.moved += count
        if self._bar is not None:
            self._bar.update(count)

    def skip(self, count: int) -> None:
        """So many bytes were done before."""
        self.resumed += count
        if self._bar is not None:
            self._bar.initial += count  # does not count for the speed
            self._bar.update(count)

    def close(self) -> None:
        """Leave the terminal as it should be."""
        if self._bar is not None:
            self._bar.close()
