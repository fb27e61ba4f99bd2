"""commits per hour -> a turn for each commit, over all processes of a workspace; numbered files say who had which.

The Hub counts the commits of an hour, so a command that was stopped and is run again, or runs twice at once, must know
what was sent before. Commit n may be sent an hour after commit n - limit had arrived. A process takes a turn by
creating the file with the next number. It does so with link(2), which lets only one process create it.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mistral.files import make_folder, publish_bytes, storage_errors, write_bytes
from mistral.progress import Progress
from mistral.waiting import pause

HOUR_SECONDS = 3600.0
LONGEST_COMMIT_SECONDS = 300.0  # in which a commit arrives, or is given up
KEPT_SECONDS = 86_400.0
WORTH_TELLING_SECONDS = 60.0


class Pace:
    """The commits of a workspace.

    Args:
        folder: one file for each commit, named by its number: when it had arrived, in seconds since 1970.
        commits_per_hour: no hour holds more of them.
        progress: is told of the waiting.
        clock: tells the time.
        wait: waits some seconds.
    """

    def __init__(
        self,
        folder: Path,
        commits_per_hour: int,
        progress: Progress,
        clock: Callable[[], float] = time.time,
        wait: Callable[[float, str, Progress], None] = pause,
    ) -> None:
        self._folder, self.commits_per_hour, self._progress = folder, commits_per_hour, progress
        self._clock, self._wait = clock, wait
        make_folder(folder)
        numbers = self._numbers()
        for number in numbers:  # the newest stays, so that no number is used twice
            if self._arrived(number) < clock() - KEPT_SECONDS and number != numbers[-1]:
                self._file(number).unlink(missing_ok=True)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until one more commit fits into the hour; it is sent within this block."""
        number = self._take()
        try:
            yield
        finally:
            self._write(number, self._clock())

    def seconds_until(self, commits: int) -> float:
        """When the last of so many further commits can be sent, if none of them takes any time."""
        hours, last = divmod(commits - 1, self.commits_per_hour)
        return hours * HOUR_SECONDS + self._seconds_until(self._newest() + last + 1) if commits > 0 else 0.0

    def _take(self) -> int:
        """Take a turn; returns its number."""
        told = False
        while True:
            number = self._newest() + 1
            seconds = self._seconds_until(number)
            if seconds <= 0:
                # Until the commit is over it counts as one that arrives as late as it can: a kill leaves this file.
                latest = self._clock() + LONGEST_COMMIT_SECONDS
                if publish_bytes(self._file(number), _text(latest)):
                    return number
                continue  # another process took it
            reason = f"{self.commits_per_hour:,} commits in the last hour (export.commits_per_hour)"
            if seconds >= WORTH_TELLING_SECONDS and not told:
                self._progress.say(f"{reason}: waiting {seconds:,.0f} s")
                told = True
            self._wait(seconds, reason, self._progress)

    def _seconds_until(self, number: int) -> float:
        """How long until a commit may be sent, given those that are on file."""
        return max(0.0, self._arrived(number - self.commits_per_hour) + HOUR_SECONDS - self._clock())

    def _arrived(self, number: int) -> float:
        """When a commit had arrived; long ago if there is no file of it.

        A time far ahead was written before the clock was set back. It and a damaged file count as commits of this
        moment from now on.
        """
        now = self._clock()
        try:
            arrived = float(self._file(number).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return 0.0
        except ValueError:
            arrived = math.inf
        if arrived <= now + LONGEST_COMMIT_SECONDS:
            return arrived
        self._write(number, now)
        return now

    def _write(self, number: int, arrived: float) -> None:
        write_bytes(self._file(number), _text(arrived))

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:08d}"

    def _newest(self) -> int:
        return self._numbers()[-1]

    def _numbers(self) -> list[int]:
        """The numbers on file in order, 0 before them."""
        with storage_errors(self._folder):
            return [0, *sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())]


def _text(seconds: float) -> bytes:
    return f"{seconds:.3f}\n".encode()
