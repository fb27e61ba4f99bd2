"""commits per hour -> waiting before each commit; what this workspace sent in the last hour is kept in a file.

The Hub counts commits over an hour, so a command that was stopped and is run again must know what it sent before.
"""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from mistral.files import make_folder, storage_errors, write_bytes

HOUR_SECONDS = 3600.0
WORTH_TELLING_SECONDS = 60.0


class Pace:
    """The commits of the last hour.

    Args:
        journal: one line for each commit: when it was sent, in seconds since 1970.
        commits_per_hour: no hour holds more of them.
        clock: tells the time.
        sleep: waits some seconds.
    """

    def __init__(
        self,
        journal: Path,
        commits_per_hour: int,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._journal, self._limit, self._clock, self._sleep = journal, commits_per_hour, clock, sleep
        self._sent = deque(_recent(_read(journal), clock()))
        write_bytes(journal, "".join(f"{sent:.3f}\n" for sent in self._sent).encode())

    def wait(self, tell: Callable[[str], None]) -> None:
        """Wait until one more commit fits into the hour, and count it: it is about to be sent."""
        while len(self._sent) >= self._limit:
            seconds = self._sent[-self._limit] + HOUR_SECONDS - self._clock()
            if seconds <= 0:
                self._sent.popleft()
                continue
            if seconds >= WORTH_TELLING_SECONDS:
                tell(f"{self._limit} commits in the last hour (export.commits_per_hour): waiting {seconds:.0f} s")
            self._sleep(seconds)
        self._sent.append(self._clock())
        with storage_errors(self._journal), self._journal.open("a", encoding="utf-8") as journal:
            journal.write(f"{self._sent[-1]:.3f}\n")


def _read(journal: Path) -> list[float]:
    """The times in the file; a line that a kill cut short is left out."""
    make_folder(journal.parent)
    text = journal.read_text(encoding="utf-8") if journal.exists() else ""
    return sorted(float(line) for line in text.splitlines() if line.replace(".", "", 1).isdigit())


def _recent(times: list[float], now: float) -> list[float]:
    """Those of the last hour; a time that is still to come is of a clock that was set back."""
    return [sent for sent in times if now - HOUR_SECONDS < sent <= now]
