"""progress of the library -> bars on a terminal, one plain line every 30 seconds elsewhere; always on stderr."""

import os
import sys
import time
from typing import Any, TextIO

from mistral.numbers import duration, number, pace

PLAIN_SECONDS = 30.0
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:,.0f}/{total:,.0f} [{elapsed}<{remaining}{postfix}]"
NARROW_BAR = "{desc}: {percentage:3.0f}%|{bar}| [{remaining} left{postfix}]"  # a run of 400,000 steps in 80 columns
NARROW_COLUMNS = 100


class Reporter:
    """Draws the progress of one piece of work after another."""

    def __init__(self, stream: TextIO | None = None, plain_seconds: float = PLAIN_SECONDS) -> None:
        self._stream = stream or sys.stderr
        self._plain_seconds = plain_seconds
        self._bar: Any = None
        self._form = BAR
        self._name, self._unit = "", ""
        self._total = self._done = self._found = 0.0
        self._facts: dict[str, float] = {}
        self._began = self._shown = time.monotonic()
        self._ends = 0.0  # not before this time, by the monotonic clock

    def start(self, name: str, total: float, unit: str, done: float = 0) -> None:
        """Begin a piece of work of `total` units, of which `done` were found finished; nothing is shown of no work."""
        self._name, self._unit, self._total, self._done, self._found = name if total else "", unit, total, done, done
        self._facts, self._ends = {}, 0.0
        self._began = self._shown = time.monotonic()
        if not total:
            return
        if self._stream.isatty():
            from tqdm import tqdm

            columns = os.get_terminal_size(self._stream.fileno()).columns or NARROW_COLUMNS  # 0: not known
            self._form = BAR if columns >= NARROW_COLUMNS else NARROW_BAR
            self._bar = tqdm(
                total=total, initial=done, desc=name, file=self._stream, bar_format=self._form, ncols=columns - 1
            )
        else:
            self.say(f"{name}: {done:,.0f} of {total:,.0f} {unit}")

    def advance(self, amount: float = 1, **facts: float) -> None:
        """`amount` more units are done."""
        self._done += amount
        self._facts.update(facts)
        if self._bar is not None:
            self._bar.set_postfix_str(self._told("="), refresh=False)
            self._show_time_left()
            self._bar.update(max(0.0, min(amount, self._total - self._bar.n)))  # sums of parts are a bit off the whole
        elif self._name and time.monotonic() - self._shown >= self._plain_seconds:
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

    def _told(self, equals: str) -> str:
        """How fast it goes, and the facts: `28 steps/s, loss=3.142`."""
        speed = pace(self._done - self._found, time.monotonic() - self._began, self._unit)
        facts = [f"{name}{equals}{number(value, 4)}" for name, value in self._facts.items()]
        return ", ".join([*([speed] if speed else []), *facts])

    def _seconds_left(self) -> float:
        """By the rate so far, or what the work expects if that is more; 0 if neither is known."""
        now, made = time.monotonic(), self._done - self._found
        left = (self._total - self._done) * (now - self._began) / made if made else 0.0
        return max(left, self._ends - now, 0.0)

    def _show_time_left(self) -> None:
        """Let the bar tell what the work expects where tqdm would tell what follows from the rate alone."""
        if self._ends:
            left = self._bar.format_interval(self._seconds_left())
            self._bar.bar_format = self._form.replace("{remaining}", left)

    def _show(self, text: str = "") -> None:
        self._shown = time.monotonic()
        if not self._name:
            return self.say(text)
        told, left = self._told(" "), self._seconds_left()
        parts = [f"{self._name}: {self._done:,.0f} of {self._total:,.0f} {self._unit}", *([told] if told else [])]
        shown = ", ".join([*parts, *([f"{duration(left)} left"] if left > 0 and self._done < self._total else [])])
        self.say(f"{shown}; {text}" if text else shown)
