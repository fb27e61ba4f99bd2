"""what a long piece of work tells its caller: a name, a total, steps done, facts by the way.

The library reports through this protocol and never prints; pipeline/reporter.py draws it.
"""

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of one piece of work after another."""

    def start(self, name: str, total: float, unit: str, done: float = 0) -> None:
        """Begin a piece of work of `total` units, of which `done` were found finished."""

    def advance(self, amount: float = 1, **facts: float) -> None:
        """`amount` more units are done; `facts` are shown beside the bar (loss=3.2)."""

    def finish(self) -> None:
        """The piece of work has ended."""

    def expect(self, seconds: float) -> None:
        """What is left takes at least so long, however fast the units before it were."""

    def waiting(self, text: str) -> None:
        """What the work waits for; called about once a second, and shown at least every 30 seconds."""

    def say(self, text: str) -> None:
        """One line for the reader."""


class Silent:
    """A Progress that shows nothing."""

    def start(self, name: str, total: float, unit: str, done: float = 0) -> None:
        """Ignored."""

    def advance(self, amount: float = 1, **facts: float) -> None:
        """Ignored."""

    def finish(self) -> None:
        """Ignored."""

    def expect(self, seconds: float) -> None:
        """Ignored."""

    def waiting(self, text: str) -> None:
        """Ignored."""

    def say(self, text: str) -> None:
        """Ignored."""
