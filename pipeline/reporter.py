"""progress of the library -> bars on a terminal, one plain line every 30 seconds elsewhere; always on stderr."""

import sys
import time
from typing import Any, TextIO

PLAIN_SECONDS = 30.0


class Reporter:
    """Draws the progress of one piece of work after another."""

    def __init__(self, stream: TextIO | None = None, plain_seconds: float = PLAIN_SECONDS) -> None:
        self._stream = stream or sys.stderr
        self._plain_seconds = plain_seconds
        self._bar: Any = None
        self._name, self._unit, self._total, self._done = "", "", 0, 0
        self._facts: dict[str, float] = {}
        self._began = self._shown = time.monotonic()
        self._found = 0
        self._ends = 0.0  # not before this time, by the monotonic clock

    def start(self, name: str, total: int, unit: str, done: int = 0) -> None:
        """Begin a piece of work of `total` units, of which `done` were found finished."""
        self._name, self._unit, self._total, self._done, self._found = name, unit, total, done, done
        self._facts, self._ends = {}, 0.0
        self._began = self._shown = time.monotonic()
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=name, unit=f" {unit}", file=self._stream, leave=True)
        else:
            self.say(f"{name}: {done} of {total} {unit}")

    def advance(self, amount: int = 1, **facts: float) -> None:
        """`amount` more units are done."""
        self._done += amount
        self._facts.update(facts)
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in self._facts.items()}, refresh=False)
            self._show_time_left()
            self._bar.update(amount)
        elif time.monotonic() - self._shown >= self._plain_seconds:
            self._show()

    def finish(self) -> None:
        """The piece of work has ended."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._name:
            self._show()
        self._name = ""

    def expect(self, seconds: float) -> None:
        """What is left takes at least so long: the time left that is shown is never less."""
        self._ends = time.monotonic() + seconds

    def waiting(self, text: str) -> None:
        """What the work waits for: beside the bar on a terminal, one line every 30 seconds elsewhere."""
        if self._bar is not None:
            self._show_time_left()
            self._bar.set_postfix_str(text)
        elif time.monotonic() - self._shown >= self._plain_seconds - 1:  # the next call comes in a second
            self._show(text)

    def say(self, text: str) -> None:
        """One line for the reader."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def _seconds_left(self) -> float:
        """By the rate so far, or what the work expects if that is more; 0 if neither is known."""
        now = time.monotonic()
        rate = (self._done - self._found) / max(now - self._began, 1e-9)
        return max((self._total - self._done) / rate if rate else 0.0, self._ends - now, 0.0)

    def _show_time_left(self) -> None:
        """Let the bar tell what the work expects where tqdm would tell what follows from the rate alone."""
        if self._ends:
            left = self._bar.format_interval(self._seconds_left())
            counts = "{n_fmt}/{total_fmt} [{elapsed}<" + left + ", {rate_fmt}{postfix}]"
            self._bar.bar_format = "{l_bar}{bar}| " + counts

    def _show(self, text: str = "") -> None:
        now = time.monotonic()
        self._shown = now
        if not self._name:
            return self.say(text)
        facts = "".join(f", {name} {value:.4g}" for name, value in self._facts.items())
        rate = (self._done - self._found) / max(now - self._began, 1e-9)
        left = self._seconds_left()
        rest = f", {left:.0f} s left" if self._done < self._total and left else ""
        told = f"; {text}" if text else ""
        self.say(
            f"{self._name}: {self._done} of {self._total} {self._unit}, {rate:.3g} {self._unit}/s{facts}{rest}{told}"
        )
