"""huggingface_hub's connection to the Hub -> one in which each wait has an end, and nothing is asked again in silence.

huggingface_hub sets no time limit, repeats some requests by itself for minutes, and sends large files by hf-xet where
that is installed, which repeats in silence as well. Code that uses the Hub first calls `ask_once` if it retries by
itself, as publishing does, or else `limit_waiting`, as fetching does.
"""

import json
import os
from typing import Any

import httpx2
from huggingface_hub import constants, get_token, set_client_factory
from huggingface_hub.utils import disable_progress_bars, hf_raise_for_status
from huggingface_hub.utils._http import hf_request_event_hook

from mistral.errors import EnvironmentProblem

LIMITS = httpx2.Timeout(connect=30.0, read=60.0, write=60.0, pool=60.0)  # seconds without any progress
RETRYABLE = (408, 429)  # and 500 and above
FALSE = ("0", "false", "no", "off")
XET = {  # what hf-xet reads when it is started: no retries of its own, and the same limits
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "0",
    "HF_XET_CLIENT_CONNECT_TIMEOUT": "30s",
    "HF_XET_CLIENT_READ_TIMEOUT": "60s",
}


class Dropped(ConnectionError):
    """A connection that broke, or did not go on for as long as LIMITS allow.

    It is no error of httpx2, so that huggingface_hub does not retry it.
    """


class Refusal(Exception):
    """An answer that says 200 and tells of an error all the same."""

    def __init__(self, status: int, told: str) -> None:
        super().__init__(told)
        self.status, self.told = status, told


class Client(httpx2.Client):
    """A client whose waits all have an end, whatever limit the caller asks for: huggingface_hub often asks for none."""

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send one request."""
        asked = request.extensions.get("timeout", {})
        limits = {name: min(limit, asked.get(name) or limit) for name, limit in LIMITS.as_dict().items() if limit}
        request.extensions = {**request.extensions, "timeout": limits}
        return super().send(request, **options)


class ClientThatAsksOnce(Client):
    """A client that raises what huggingface_hub would retry by itself."""

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send one request.

        Raises:
            Dropped: the connection broke, or the Hub did not answer in time.
            HfHubHTTPError: the Hub is busy or out of order.
            Refusal: the answer is an error in disguise.
        """
        try:
            response = super().send(request, **options)
        except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            raise Dropped(f"{type(error).__name__} {error}".strip()) from error
        if options.get("stream"):
            return response
        busy = response.status_code == 409 and "operation is in progress" in response.text
        if busy or response.status_code in RETRYABLE or response.status_code >= 500:
            hf_raise_for_status(response)
        if response.is_success and b'"error"' in response.content and (refusal := _disguised(response)):
            raise refusal
        return response


def _disguised(response: httpx2.Response) -> Refusal | None:
    """The error that an answer of 200 tells of: of all that was asked, or of a file in an answer of the LFS batch."""
    try:
        body = json.loads(response.content)
    except ValueError:
        return None
    if not isinstance(body, dict):
        return None
    if isinstance(body.get("error"), str):
        return Refusal(response.status_code, body["error"])
    if not request_path(response).endswith("/info/lfs/objects/batch"):
        return None
    objects = body.get("objects")
    listed = objects if isinstance(objects, list) else []
    errors = [one["error"] for one in listed if isinstance(one, dict) and isinstance(one.get("error"), dict)]
    if not errors:
        return None
    told = "; ".join(dict.fromkeys(str(error.get("message", error)) for error in errors))
    code = errors[0].get("code")
    return Refusal(code if isinstance(code, int) else response.status_code, told)


def request_path(response: httpx2.Response) -> str:
    """The path that was asked for."""
    return response.request.url.path


def limit_waiting() -> None:
    """Give every request of this process to the Hub time limits; huggingface_hub goes on retrying by itself.

    Raises:
        EnvironmentProblem: the token that it would send holds what no token holds.
    """
    require_plain(get_token() or "", "HF_TOKEN, or the token that is kept by `hf auth login`")
    _choose(Client)


def ask_once() -> None:
    """As `limit_waiting`; moreover each request is made once, as the caller retries."""
    disable_progress_bars()  # progress goes through the reporter
    _choose(ClientThatAsksOnce)


def _choose(client: type[Client]) -> None:
    set_client_factory(
        lambda: client(event_hooks={"request": [hf_request_event_hook]}, follow_redirects=True, timeout=LIMITS)
    )
    constants.HF_HUB_DISABLE_XET = not wants_xet()
    if wants_xet():
        for name, value in XET.items():
            os.environ.setdefault(name, value)


def wants_xet() -> bool:
    """Whether large files go by hf-xet: only if HF_HUB_DISABLE_XET says so, as docs/publishing.md tells why."""
    return os.environ.get("HF_HUB_DISABLE_XET", "").strip().lower() in FALSE


def token_from_environment() -> str | None:
    """HF_TOKEN without the blanks around it; None if there is none.

    Raises:
        EnvironmentProblem: it holds what no token holds; HTTP libraries would show it in their error.
    """
    token = os.environ.get("HF_TOKEN", "").strip()
    require_plain(token, "HF_TOKEN")
    return token or None


def require_plain(token: str, name: str) -> None:
    """Refuse a token that cannot be sent, without showing it.

    Raises:
        EnvironmentProblem: it holds a blank, a control character or one outside ASCII.
    """
    wrong = {_kind(character) for character in token} - {""}
    if wrong:
        raise EnvironmentProblem(
            f"{name}: found {' and '.join(sorted(wrong))} in the token, expected letters, digits and underscores only\n"
            "  copy it again from https://huggingface.co/settings/tokens, and export it"
        )


def _kind(character: str) -> str:
    """What is wrong with a character of a token; empty if nothing is."""
    if "!" <= character <= "~":
        return ""
    if character.isspace():
        return "a blank or a line break"
    return "a character outside ASCII" if character > "~" and character.isprintable() else "a control character"
