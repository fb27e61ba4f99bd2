"""errors of huggingface_hub, httpx2 and hf-xet -> whether asking again can help, when, and what the user is told."""

import json
import re
import time
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpx2
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

from mistral.connection import RETRYABLE, Dropped, Refusal

ATTEMPTS = 8
LONGEST_BACK_OFF_SECONDS = 60.0
LONGEST_ASKED_SECONDS = 86_400.0  # the Hub may ask for more, and the command ends then
# What a second attempt cannot change: payment required, too large, not implemented, storage used up.
HOPELESS = (402, 413, 501, 505, 507)
XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")
PAGE = re.compile(r"<(?:!doctype|html|\?xml|error)\b.*", re.IGNORECASE | re.DOTALL)
SHAPE = re.compile(r"malformed|improperly formatted|invalid server response|invalid etag", re.IGNORECASE)
MESSAGE = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)
STORAGE = re.compile(r"storage|quota|billing|payment|upgrade your plan", re.IGNORECASE)
AGAIN = "run the same command again: what is published is not sent again"


def seconds_until_retry(error: Exception, attempt: int, fresh: bool = False) -> float | None:
    """How long to wait before a call is made again; None if that would give the same answer.

    Args:
        error: what came of the last attempt.
        attempt: its number, from 1.
        fresh: what the call asks for was made a moment ago, so that "not found" means "not yet".
    """
    back_off = min(2.0 ** (attempt - 1), LONGEST_BACK_OFF_SECONDS)
    status, response = status_of(error), response_of(error)
    if status in HOPELESS or is_offline(error):
        return None
    if status is not None and (status in RETRYABLE or status >= 500):
        return max(_asked_for(response), back_off) if response is not None else back_off
    if isinstance(error, RuntimeError):  # an upload within a commit: it is given a fresh address
        return back_off
    if status == 409:
        return back_off if "operation is in progress" in told_by(error) else None
    if status == 200 or (status == 404 and fresh):  # an error in disguise; or the Hub's listings lag behind
        return back_off
    return back_off if status is None and (_is_dropped(error) or _is_of_another_shape(error)) else None


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error; None if no answer is."""
    response = response_of(error)
    if response is not None:
        return response.status_code
    for cause in _causes(error):
        if isinstance(cause, Refusal):
            return cause.status
        if match := XET_STATUS.search(str(cause)):
            return int(match[1])
    return None


def response_of(error: BaseException) -> httpx2.Response | None:
    """The Hub's answer behind an error: libraries wrap it into errors of their own."""
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError | httpx2.HTTPStatusError):
            return cause.response
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """An error, what it was raised from, and so on; mistakes within huggingface_hub name no cause, only a context."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        mistake = isinstance(cause, AttributeError | TypeError | KeyError)
        cause = cause.__cause__ or (cause.__context__ if mistake else None)
    return causes


def is_offline(error: BaseException) -> bool:
    """Whether HF_HUB_OFFLINE forbids the call."""
    return any(isinstance(cause, OfflineModeIsEnabled) for cause in _causes(error))


def is_busy(error: Exception) -> bool:
    """Whether the same call may be answered later: the Hub is busy or out of order, or does not answer."""
    status = status_of(error)
    if status is not None:
        return status in RETRYABLE or (status >= 500 and status not in HOPELESS)
    return any(isinstance(cause, Exception) and _is_dropped(cause) for cause in _causes(error)) and not is_offline(
        error
    )


def _is_dropped(error: Exception) -> bool:
    """Whether the connection broke or stood still; hf-xet has no errors of its own for that."""
    dropped = isinstance(error, ConnectionError | TimeoutError | httpx2.TransportError)
    return dropped and not _is_no_address(error) and not isinstance(error, OfflineModeIsEnabled)


def _is_no_address(error: Exception) -> bool:
    return isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError | httpx2.InvalidURL)


def _is_of_another_shape(error: Exception) -> bool:
    """Whether the answer was not what huggingface_hub reads: a page of a gateway, or a field that is missing."""
    mistaken = (
        json.JSONDecodeError | UnicodeDecodeError | LookupError | TypeError | AttributeError | httpx2.DecodingError
    )
    return isinstance(error, mistaken) or (isinstance(error, ValueError) and SHAPE.search(str(error)) is not None)


def _asked_for(response: httpx2.Response) -> float:
    """Seconds that the Hub asks to wait: Retry-After (RFC 9110, 10.2.3: seconds or a date), or until its limit ends."""
    header = response.headers.get("Retry-After", "")
    limit = parse_ratelimit_headers(response.headers)
    try:
        return float(header) if header.isdigit() else parsedate_to_datetime(header).timestamp() - time.time()
    except (ValueError, OverflowError):
        return float(limit.reset_in_seconds) if limit and not limit.remaining else 0.0


def reason_of(error: Exception) -> str:
    """`the Hub answered 429 Too Many Requests: you are too fast`, or what came instead of an answer."""
    status, told = status_of(error), told_by(error)
    if status is not None:
        phrase = f" {HTTPStatus(status).phrase}" if status in {known.value for known in HTTPStatus} else ""
        return f"the Hub answered {status}{phrase}{f': {told}' if told else ''}"
    if _is_of_another_shape(error):
        return f"the Hub answered in another form than expected ({type(error).__name__}: {error})"
    cause = error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error
    text = str(cause) if isinstance(cause, Dropped) else f"{type(cause).__name__}: {cause}"
    return f"no connection to the Hub, or one that stood still ({text})" if _is_dropped(cause) else text


def told_by(error: BaseException) -> str:
    """All that the Hub says about a refusal; nothing where it sends a page for browsers."""
    for cause in _causes(error):
        if isinstance(cause, Refusal):
            return cause.told
        if isinstance(cause, HfHubHTTPError):
            return _without_page(cause.server_message or "")
        if isinstance(cause, httpx2.HTTPStatusError):
            return _without_page(cause.response.text)
        if XET_STATUS.search(str(cause)):
            return str(cause).strip()
    return ""


def _without_page(text: str) -> str:
    """A text without a page in it; of an error of the storage, which comes as XML, its message."""
    text = PAGE.sub(lambda page: " ".join(MESSAGE.findall(page[0])), text).strip()
    return text.replace("\n", "\n  ")


def advice_for(error: Exception, asked_seconds: float | None = None) -> str:
    """What the user does now; `asked_seconds` is how long the Hub wants to be left alone, if it says."""
    status, told = status_of(error), told_by(error)
    refused = status is not None and 400 <= status < 500 and status not in (408, 409, 412, 429)
    storage = status in (402, 507) or (status in (400, 403, 413) and STORAGE.search(told) is not None)
    advice = {
        f"run the same command again in {(asked_seconds or 0) / 3600:,.1f} h, as the Hub asks": (
            asked_seconds is not None and asked_seconds > LONGEST_ASKED_SECONDS
        ),
        "unset HF_HUB_OFFLINE, where there is a network, and run the same command again": is_offline(error),
        "set HF_ENDPOINT to an address that begins with https://, or unset it": _is_no_address(error),
        f"make room or buy storage for the organization on the Hub, then {AGAIN}": storage,
        "set HF_TOKEN to a token that may write to the organization (docs/publishing.md)": (
            status in (401, 403) and not isinstance(error, RuntimeError)
        ),
        "the Hub takes nothing of this size: ask it for a higher limit, or export with export.dtype=bf16": status
        == 413,
        "see whether the Hub has it and HF_TOKEN may read it, then run the same command again": status == 404,
        "change what the Hub names: the same request would be refused again": refused,
    }
    return next((text for text, applies in advice.items() if applies), AGAIN)
