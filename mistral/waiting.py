"""a pause, or a call that may never return -> it ends in time, and the reader is told of it while it lasts."""

import contextvars
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from mistral.progress import Progress

BEAT_SECONDS = 1.0
Answer = TypeVar("Answer")


def pause(seconds: float, what: str, progress: Progress) -> None:
    """Sleep, and say once a second what for and how much longer."""
    while seconds > 0:
        progress.waiting(f"{what}, {seconds:,.0f} s left")
        time.sleep(min(seconds, BEAT_SECONDS))
        seconds -= BEAT_SECONDS


class _Outcome(Generic[Answer]):
    """What a call in another thread gave: its result, or the error that ended it."""

    def __init__(self) -> None:
        self.results: list[Answer] = []
        self.error: BaseException | None = None

    def __enter__(self) -> list[Answer]:
        return self.results

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        self.error = error
        return True  # it is raised in the thread that waits


def watch(call: Callable[[], Answer], what: str, progress: Progress, limit_seconds: float | None) -> Answer:
    """Make a call in a thread of its own, and say once a second that it has not returned yet.

    No library below can then hold the command: a call that outlasts its limit is left to itself.

    Args:
        call: what is done; its result or its error becomes that of this function.
        what: names the call.
        progress: is told of the waiting.
        limit_seconds: for how long; None for a call that has limits of its own.

    Raises:
        TimeoutError: the call took longer.
    """
    outcome: _Outcome[Answer] = _Outcome()

    def work() -> None:
        with outcome as results:
            results.append(call())

    began = time.monotonic()
    worker = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    worker.start()
    while True:
        worker.join(BEAT_SECONDS)
        if not worker.is_alive():
            break
        seconds = time.monotonic() - began
        if limit_seconds is not None and seconds > limit_seconds:
            raise TimeoutError(f"no whole answer within {limit_seconds:,.0f} s")
        progress.waiting(f"{what}: no answer yet after {seconds:,.0f} s")
    if outcome.error is not None:
        raise outcome.error
    return outcome.results[0]
