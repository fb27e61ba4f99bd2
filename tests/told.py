"""A Progress that keeps what it is told."""

from mistral.progress import Silent


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
