"""A Progress that keeps what it is told, and a clock that only waiting moves."""

from pathlib import Path

from mistral.pace import Pace
from mistral.progress import Progress, Silent


class Told(Silent):
    """Lines, waits, expectations and units, in the order they came."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.waits: list[str] = []
        self.expected: list[float] = []

    def say(self, text: str) -> None:
        """Kept."""
        self.lines.append(text)

    def waiting(self, text: str) -> None:
        """Kept."""
        self.waits.append(text)

    def expect(self, seconds: float) -> None:
        """Kept."""
        self.expected.append(seconds)


class Clock:
    """A clock that only waiting moves."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.slept: list[float] = []

    def sleep(self, seconds: float, what: str, progress: Progress) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def pace(self, folder: Path, limit: int, progress: Progress | None = None) -> Pace:
        return Pace(folder, limit, progress or Silent(), lambda: self.now, self.sleep)
