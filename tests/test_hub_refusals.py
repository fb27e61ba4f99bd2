"""The reason of a refusal reaches the user whole, with advice that fits; what cannot help is not tried again."""

import json

import pytest
from hub_uploads import Fault
from published import ALIAS, TOKEN
from told import Told

from mistral.errors import EnvironmentProblem, MistralError
from pipeline.push import push
from pipeline.verify import verify_remote

COMMIT = "^POST .*/commit/"
JSON = {"Content-Type": "application/json"}
STORAGE = r"make room or buy storage for the organization on the Hub"
TOO_LARGE = r"the Hub takes nothing of this size: ask it for a higher limit"


def refused(exported) -> str:
    """What the command ends with."""
    with pytest.raises(EnvironmentProblem) as error:
        exported.push()
    return str(error.value)


def said(text: str) -> bytes:
    return json.dumps({"error": text}).encode()


@pytest.mark.parametrize(
    ("request_", "status", "told", "advice"),
    [
        (
            COMMIT,
            400,
            "README.md: no such license\nexpected one of apache-2.0, mit",
            "change what the Hub names",
        ),
        (COMMIT, 403, "Private repository storage limit reached, please upgrade your plan", STORAGE),
        (COMMIT, 403, "You do not have the rights to do that", "set HF_TOKEN to a token that may write"),
        (COMMIT, 413, "The request is too large", TOO_LARGE),
        (COMMIT, 507, "Insufficient storage in crfm", STORAGE),
        ("/batch", 402, "Payment required", STORAGE),
        ("/batch", 422, "hash_algo must be sha256", "change what the Hub names"),
        ("^PUT /lfs/", 413, "Your proposed upload exceeds the maximum allowed size", TOO_LARGE),
        ("^PUT /lfs/", 507, "No more storage", STORAGE),
        ("/preupload/", 401, "Invalid credentials", "set HF_TOKEN to a token that may write"),
        ("/branch/", 403, "Forbidden for this token", "set HF_TOKEN to a token that may write"),
        ("repos/create", 400, "The name is reserved", "change what the Hub names"),
    ],
)
def test_a_refusal_is_told_whole_once_and_with_advice_that_fits(exported, request_, status, told, advice):
    exported.export("alias", 0)
    exported.hub.faults = [Fault(request_, str(status), times=100, headers=JSON, body=said(told))]
    message = refused(exported)
    assert f"the Hub answered {status} " in message
    assert all(line in message for line in told.split("\n"))
    assert message.splitlines()[-1].strip().startswith(advice)
    assert exported.hub.faults[0].times == 99, "the same call gives the same answer"
    exported.hub.faults = []
    exported.push()
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0)


@pytest.mark.parametrize(
    ("code", "told", "advice", "attempts"),
    [
        (507, "Storage quota of crfm exceeded: 1.0 TB of 1.0 TB", STORAGE, 1),
        (413, "The file is larger than 50 GB", TOO_LARGE, 1),
        (422, "The oid is no sha256", "change what the Hub names", 1),
        (503, "Slow down", "run the same command again", 8),
    ],
)
def test_a_file_that_the_large_file_storage_refuses_is_told_with_its_reason(exported, code, told, advice, attempts):
    exported.export("alias", 0)
    exported.hub.refused = {"code": code, "message": told}
    message = refused(exported)
    assert message.startswith(f"cannot commit to the branch checkpoint-0 of {ALIAS}: the Hub answered {code} ")
    assert f": {told}" in message
    assert message.splitlines()[-1].strip().startswith(advice)
    assert exported.hub.made("/batch") == attempts
    exported.hub.refused = None
    exported.push()
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0)


def test_an_error_of_the_storage_is_told_without_its_markup(exported):
    exported.export("alias", 0)
    page = b"<?xml version='1.0'?><Error><Code>EntityTooLarge</Code><Message>Your upload is too large</Message></Error>"
    exported.hub.faults = [Fault("^PUT /lfs/", "413", headers={"Content-Type": "application/xml"}, body=page)]
    assert "the Hub answered 413 Request Entity Too Large: Your upload is too large\n" in refused(exported)


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        ("/refs", 200, said("Internal error")),
        ("/refs", 200, b'{"branches": [{"name": "main"}], "converts": [], "tags": []}'),
        ("/refs", 200, b"[]"),
        ("/refs", 200, b"null"),
        ("^GET /api/models/[^/]*/[^/]*$", 200, b"[]"),
        ("^GET /api/models/[^/]*/[^/]*$", 200, b"{}"),
        ("/commits/", 200, b"[]"),
        ("/commits/", 200, said("Internal error")),
        ("/tree/", 200, b'[{"type": "file"}]'),
        ("/tree/", 200, said("Internal error")),
        ("repos/create", 200, b"{}"),
        ("/preupload/", 200, b'{"files": []}'),
        ("/batch", 200, b'{"objects": {}}'),
        (COMMIT, 200, b"{}"),
        ("/refs", 500, b"[1]"),
        ("/refs", 500, b'"text"'),
        (COMMIT, 400, b'[{"error": "no"}]'),
        ("/refs", 200, b"<html>a page</html>"),
        ("/refs", 200, b"\xff\xfe\x00"),
    ],
)
def test_an_answer_of_another_shape_is_an_error_with_a_message(exported, request_, status, body):
    exported.export("alias", 0, 1)
    exported.hub.faults = [Fault(request_, str(status), times=1000, headers=JSON, body=body)]
    with pytest.raises(MistralError) as error:
        exported.push()
    assert str(error.value).startswith(("cannot ", "found revisions that cannot"))
    assert "\n  " in str(error.value), "it has advice"
    exported.hub.faults = [Fault(request_, str(status), headers=JSON, body=body)]
    if status != 400:
        exported.push()
        assert exported.hub.files(ALIAS) == exported.expected("alias", 0, 1), "once, it is asked again"


def test_what_the_hub_says_in_an_answer_of_200_is_told(exported):
    exported.export("alias", 0)
    exported.hub.faults = [Fault("/refs", "200", times=1000, headers=JSON, body=said("The database is read-only"))]
    assert "the Hub answered 200 OK: The database is read-only, after 8 attempts\n" in refused(exported)


@pytest.mark.parametrize("body", [b"{}", b"", b'{"error": "You already created this model repo"}'])
def test_a_repository_that_another_process_created_meanwhile_is_no_error(exported, body):
    """409 has no address in it then."""
    exported.export("alias", 0)
    exported.hub.faults = [Fault("^GET /api/models/[^/]*/[^/]*$", "404", headers={"X-Error-Code": "RepoNotFound"})]
    exported.hub.faults += [Fault("repos/create", "409", headers=JSON, body=body)]
    exported.hub.create(f"models/{ALIAS}", private=True)
    exported.push()
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0)


def test_a_hub_that_is_creating_another_repository_is_not_asked_again_at_once(exported):
    """huggingface_hub asks again without a pause, for ever."""
    exported.export("alias", 0)
    busy = said("Cannot create repo: another conflicting operation is in progress")
    exported.hub.faults = [Fault("repos/create", "409", times=100, headers=JSON, body=busy)]
    assert "another conflicting operation is in progress, after 8 attempts" in refused(exported)
    assert exported.hub.made("repos/create") == 8


@pytest.mark.parametrize("character", [" ", "\n", "\t", "\0", "\x7f", "\u00e9", "\u2028", "\U0001f600"])
@pytest.mark.parametrize("command", [push, verify_remote])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(exported, monkeypatch, character, command):
    exported.export("alias", 0)
    environment = {"HF_TOKEN": f" {TOKEN[:9]}{character}{TOKEN[9:]}\n"}  # the system itself refuses a zero byte
    monkeypatch.setattr("os.environ", {**environment})
    told = Told()
    with pytest.raises(EnvironmentProblem, match=r"HF_TOKEN: found a .* in the token, expected letters") as error:
        command(exported.experiment, exported.workspace, told)
    shown = "\n".join([str(error.value), *told.lines, *told.waits])
    assert TOKEN[:9] not in shown
    assert TOKEN[9:] not in shown
    assert exported.hub.requests == []


def test_blanks_around_a_token_are_left_out(exported, monkeypatch):
    exported.export("alias", 0)
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    exported.push()
    assert exported.problems() == []


def test_a_token_that_the_hub_sends_back_is_not_shown(exported):
    exported.export("alias", 0)
    exported.hub.faults = [Fault(COMMIT, "403", headers=JSON, body=said(f"Invalid token {TOKEN}"))]
    message = refused(exported)
    assert "Invalid token (the token)" in message
    assert TOKEN not in message


def test_an_address_without_a_scheme_is_told_at_once(exported, monkeypatch):
    exported.export("alias", 0)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "hub.example")
    assert refused(exported).endswith("\n  set HF_ENDPOINT to an address that begins with https://, or unset it")


def test_offline_mode_is_told_at_once_with_the_variable_that_ends_it(exported, monkeypatch):
    exported.export("alias", 0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "\n  unset HF_HUB_OFFLINE, where there is a network, and run" in refused(exported)
    assert exported.hub.requests == []
