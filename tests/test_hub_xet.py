"""hf-xet is used only if the user says so, and then keeps the same promises: the real one, against loopback."""

import pytest
from hub_uploads import Fault
from huggingface_hub.utils._xet import abort_xet_session
from published import ALIAS
from told import Told

from mistral.connection import wants_xet
from mistral.errors import EnvironmentProblem
from pipeline.push import push

TOKEN_CALL, UPLOAD = "xet-write-token", "^POST /v1/"


@pytest.fixture
def by_xet(exported, monkeypatch):
    """One revision, and a user who wants Xet."""
    options = {
        "HF_HUB_DISABLE_XET": "0", "HF_XET_CLIENT_READ_TIMEOUT": "1s", "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "0",
        "HF_XET_CLIENT_SHARD_API_VERSION": "1", "HF_XET_CLIENT_LEGACY_DIRECT_XORB_UPLOAD": "true",
        "HF_XET_TELEMETRY_ENABLED": "false", "HF_XET_CACHE": str(exported.workspace.root / "xet"),
    }  # fmt: skip
    for name, value in options.items():
        monkeypatch.setenv(name, value)
    abort_xet_session()  # the next one reads the options
    exported.export("alias", 0)
    exported.hub.sent_by_xet = [
        (exported.workspace.export("alias-tiny-x21", 0) / "model.safetensors").read_bytes()
    ]  # fmt: skip
    yield exported
    abort_xet_session()


@pytest.mark.parametrize(("value", "wanted"), [("0", True), ("false", True), ("1", False), ("", False), (None, False)])
def test_xet_is_used_only_if_the_environment_says_so(exported, monkeypatch, value, wanted):
    monkeypatch.delenv("HF_HUB_DISABLE_XET", raising=False)
    if value is not None:
        monkeypatch.setenv("HF_HUB_DISABLE_XET", value)
    assert wants_xet() == wanted
    if not wanted:
        exported.export("alias", 0)
        exported.push()
        assert exported.hub.made("xet|^POST /v1/") == 0


def test_a_revision_that_is_sent_by_xet_arrives_whole(by_xet):
    by_xet.push()
    assert by_xet.hub.made(TOKEN_CALL) == 2, "of the branch and of main"
    assert by_xet.hub.made("/batch|^PUT") == 0
    assert by_xet.hub.files(ALIAS) == by_xet.expected("alias", 0)
    assert by_xet.problems() == []


@pytest.mark.parametrize("what", ["503", "429", "drop", "hang"])
@pytest.mark.parametrize("request_", [TOKEN_CALL, UPLOAD])
def test_an_error_of_xet_is_retried_by_us_and_told(by_xet, request_, what):
    by_xet.hub.faults = [Fault(request_, what)]
    told = Told()
    push(by_xet.experiment, by_xet.workspace, told)
    assert by_xet.hub.faults[0].times == 0
    line, *_ = [line for line in told.lines if "attempt 2 of 8" in line]
    assert ("the Hub answered 503 Service Unavailable" if what == "503" else "") in line
    assert by_xet.hub.files(ALIAS) == by_xet.expected("alias", 0)


def test_xet_is_tried_as_often_as_is_promised(by_xet):
    by_xet.hub.faults = [Fault(TOKEN_CALL, "503", times=100)]
    with pytest.raises(
        EnvironmentProblem, match=r"503 Service Unavailable.*, after 8 attempts\n  run the same command"
    ):
        by_xet.push()
    assert by_xet.hub.faults[0].times >= 92


@pytest.mark.parametrize("status", ["401", "403"])
def test_a_token_that_xet_refuses_is_told_at_once_with_advice(by_xet, status):
    by_xet.hub.faults = [Fault(TOKEN_CALL, status, times=100)]
    with pytest.raises(
        EnvironmentProblem, match=rf"the Hub answered {status} .*\n  set HF_TOKEN to a token that may write"
    ):
        by_xet.push()
    assert by_xet.hub.faults[0].times == 99
