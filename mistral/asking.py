"""a call to the Hub -> its answer: within a time limit, however often it has to be asked, and never in silence."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import httpx2

from mistral.connection import Refusal
from mistral.errors import EnvironmentProblem
from mistral.progress import Progress
from mistral.refusals import ATTEMPTS, LONGEST_ASKED_SECONDS, advice_for, reason_of, seconds_until_retry
from mistral.waiting import pause, watch

ANSWER_SECONDS = 300.0  # for a whole answer
LAG_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)  # in which the Hub's listings follow what was written
# What huggingface_hub, httpx2 and hf-xet raise; KeyError and the like where an answer has another form than they read.
FAILURES = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    Refusal,
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)
Answer = TypeVar("Answer")


class Asking:
    """How the Hub is asked.

    Args:
        secret: the token, which no message shows, should the Hub have sent it back.
        progress: is told of waiting.
    """

    def __init__(self, secret: str | None, progress: Progress) -> None:
        self._secret, self._progress = secret, progress

    def ask(self, what: str, call: Callable[[], Answer], fresh: bool = False) -> Answer:
        """Make a call until it is answered; as `retry`, and each attempt has a time limit."""
        return self.retry(what, partial(self.watch, what, call), fresh)

    def watch(self, what: str, call: Callable[[], Answer], limit_seconds: float | None = None) -> Answer:
        """Make a call once; it has ANSWER_SECONDS unless another limit is given.

        Raises:
            TimeoutError: it took longer.
        """
        return watch(call, what, self._progress, limit_seconds or ANSWER_SECONDS)

    def settled(self, what: str, read: Callable[[], Answer], right: Callable[[Answer], bool]) -> Answer:
        """Read what was written a moment ago; while it is not right, again, as the Hub's listings may lag behind."""
        answer = read()
        for seconds in LAG_SECONDS:
            if right(answer):
                break
            pause(seconds, f"{what}: the Hub's listing may lag behind; waiting", self._progress)
            answer = read()
        return answer

    def retry(self, what: str, call: Callable[[], Answer], fresh: bool = False) -> Answer:
        """Make a call until it is answered.

        Args:
            what: it does.
            call: has a time limit.
            fresh: what it asks for was made a moment ago, so that "not found" means "not yet".

        Raises:
            EnvironmentProblem: the Hub refuses it, or did not answer in any of the attempts.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return call()
            except FAILURES as error:
                seconds = seconds_until_retry(error, attempt, fresh=fresh)
                tries = f", after {attempt} attempts" if attempt > 1 else ""
                if seconds is None or attempt == ATTEMPTS or seconds > LONGEST_ASKED_SECONDS:
                    text = f"cannot {what}: {reason_of(error)}{tries}\n  {advice_for(error, seconds)}"
                    raise EnvironmentProblem(self._hide(text)) from error
                reason = self._hide(reason_of(error))
            waiting = f"{what}: {reason}; attempt {attempt + 1} of {ATTEMPTS} in {seconds:.0f} s"
            self._progress.say(waiting)
            pause(seconds, f"{what}: waiting to ask again", self._progress)

    def _hide(self, text: str) -> str:
        return text.replace(self._secret, "(the token)") if self._secret else text
