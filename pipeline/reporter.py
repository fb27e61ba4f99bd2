"""progress of the library -> bars on a terminal, one plain line every 30 seconds elsewhere; always on stderr."""

import os
import sys
import time
from typing import Any, TextIO

from pipeline.numbers import duration, number, pace

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
        self._name, self._unit = "", ""
        self._total = self._done = self._found = 0.0
        self._facts: dict[str, float] = {}
        self._began = self._shown = time.monotonic()

    def start(self, name: str, total: float, unit: str, done: float = 0) -> None:
        """Begin a piece of work of `total` units, of which `done` were found finished; nothing is shown of no work."""
        self._name, self._unit, self._total, self._done, self._found = name if total else "", unit, total, done, done
        self._facts = {}
        self._began = self._shown = time.monotonic()
        if not total:
            return
        if self._stream.isatty():
            from tqdm import tqdm

            columns = os.get_terminal_size(self._stream.fileno()).columns or NARROW_COLUMNS  # 0: not known
            form = BAR if columns >= NARROW_COLUMNS else NARROW_BAR
            self._bar = tqdm(
                total=total, initial=done, desc=name, file=self._stream, bar_format=form, ncols=columns - 1
            )
        else:
            self.say(f"{name}: {done:,.0f} of {total:,.0f} {unit}")

    def advance(self, amount: float = 1, **facts: float) -> None:
        """`amount` more units are done."""
        self._done += amount
        self._facts.update(facts)
        if self._bar is not None:
            self._bar.set_postfix_str(self._told("="), refresh=False)
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

    def _show(self) -> None:
        now = time.monotonic()
        self._shown = now
        told, made = self._told(" "), self._done - self._found
        left = (self._total - self._done) * (now - self._began) / made if made else 0.0
        parts = [f"{self._name}: {self._done:,.0f} of {self._total:,.0f} {self._unit}", *([told] if told else [])]
        self.say(", ".join([*parts, *([f"{duration(left)} left"] if left > 0 else [])]))
