"""A Hub that takes a request and never answers, or stops in the middle, holds no command; waiting is told of."""

import os
import signal
import subprocess
import sys
import threading

import httpx2
import huggingface_hub.constants
import pytest
from corpora import ROOT
from hub_uploads import Fault
from published import ALIAS, TOKEN
from told import Told

from mistral import vocabulary, waiting
from mistral.config import HubSource
from mistral.errors import DataError, EnvironmentProblem
from mistral.hubsource import saved_dataset
from mistral.progress import Silent
from mistral.waiting import watch
from pipeline.push import push

CALLS = [
    "^GET /api/models/[^/]*/[^/]*$", "repos/create", "/refs", "/commits/", "/tree/", "/branch/", "validate-yaml",
    "/preupload/", "/batch", "^PUT /lfs/", "^POST /lfs/", "^POST .*/commit/", "^POST .*/tag/", "/revision/",
    "^GET .*/collections$", "^GET .*/collections/", "^POST .*/collections$", "/items$",
]  # fmt: skip


@pytest.fixture
def impatient(exported, monkeypatch):
    """Nothing is waited for longer than a moment."""
    monkeypatch.setattr("mistral.connection.LIMITS", httpx2.Timeout(5.0, read=0.25, write=0.25))
    exported.choose(tag="v1.0", collection="Tiny models")
    return exported


@pytest.mark.parametrize("what", ["hang", "hang-after", "stall"])
def test_a_hub_that_hangs_once_at_every_kind_of_call_is_asked_again_and_nothing_is_made_twice(impatient, what):
    impatient.export("alias", 0, 2)
    impatient.hub.faults = [Fault(request, what) for request in CALLS]
    impatient.push()
    left = [fault.request for fault in impatient.hub.faults if fault.times]
    assert left in ([], ["^GET .*/collections/"]), "one that was made is looked up only after it was lost"
    assert impatient.hub.files(ALIAS) == impatient.expected("alias", 0, 2)
    lengths = [len(impatient.hub.history(ALIAS, c)) for c in impatient.hub.branches[f"models/{ALIAS}"].values()]
    assert lengths == [2, 2, 2], "each branch has the first commit and one of its own"
    assert [found.items for found in impatient.hub.collections.all.values()] == [[("model", ALIAS)]]
    assert impatient.problems() == []


@pytest.mark.parametrize("request_", ["/refs", "^POST .*/commit/", "^PUT /lfs/", "/tree/"])
def test_a_hub_that_always_hangs_ends_the_command_after_eight_attempts_that_are_told(impatient, request_):
    impatient.export("alias", 0)
    impatient.hub.faults = [Fault(request_, "hang", times=1000)]
    told = Told()
    with pytest.raises(EnvironmentProblem, match=r"ReadTimeout.*, after 8 attempts\n  run the same command again"):
        push(impatient.experiment, impatient.workspace, told)
    assert 1 <= 1000 - impatient.hub.faults[0].times <= 8, "huggingface_hub repeats nothing by itself"
    assert [line for line in told.lines if "attempt 8 of 8 in 60 s" in line]


def test_verify_does_not_hang_either(impatient):
    impatient.export("alias", 0)
    impatient.push()
    impatient.hub.faults = [Fault(request, "hang") for request in ("^GET /api/models/[^/]*/[^/]*$", "/refs", "/tree/")]
    assert impatient.problems() == []
    impatient.hub.faults = [Fault("/tree/", "stall", times=1000)]
    with pytest.raises(EnvironmentProblem, match=r"cannot list .*ReadTimeout"):
        impatient.problems()


def test_a_hub_that_stops_reading_a_large_file_is_sent_it_again(impatient):
    impatient.export("alias", 0)
    folder = impatient.workspace.export("alias-tiny-x21", 0)
    record = impatient.manifest.get("export", ("alias-tiny-x21", folder.name), "")
    impatient.manifest.remove("export", record.key)
    (folder / "model.safetensors").write_bytes(os.urandom(24_000_000))  # more than sockets take without a reader
    impatient.record(folder, 0)
    impatient.hub.faults = [Fault("^PUT /lfs/", "deaf")]
    impatient.push()
    impatient.hub.heard.set()
    assert impatient.hub.faults[0].times == 0
    assert impatient.hub.files(ALIAS) == impatient.expected("alias", 0)


def test_an_answer_that_trickles_in_for_ever_is_given_up(monkeypatch):
    monkeypatch.setattr(waiting, "BEAT_SECONDS", 0.01)
    with pytest.raises(TimeoutError, match="no whole answer within 0 s"):
        watch(threading.Event().wait, "list the branches", Silent(), 0.05)


def test_a_call_that_takes_long_is_told_of_as_long_as_it_takes(monkeypatch):
    monkeypatch.setattr(waiting, "BEAT_SECONDS", 0.01)
    answered = threading.Event()

    class Patient(Told):
        """Lets the call return once it was told of three times."""

        def waiting(self, text: str) -> None:
            """Kept."""
            super().waiting(text)
            if len(self.waits) == 3:
                answered.set()

    told = Patient()
    assert watch(lambda: answered.wait() and "an answer", "send 498.0 MB", told, None) == "an answer"
    assert told.waits[:3] == ["send 498.0 MB: no answer yet after 0 s"] * 3


@pytest.mark.parametrize("command", ["export --push", "verify --remote"])
def test_a_command_that_waits_for_a_hub_that_hangs_stops_at_once_when_it_is_told_to(exported, tmp_path, command):
    exported.export("alias", 0, 2)
    exported.push()
    exported.export("alias", 4)
    heads = exported.hub.branches[f"models/{ALIAS}"]
    request = {"export --push": "/branch/checkpoint-4", "verify --remote": f"/tree/{heads['checkpoint-2']}"}[command]
    exported.hub.faults = [Fault(request, "hang", times=1000)]
    exported.hub.requests.clear()
    # These folders are exported already, as far as push can tell.
    code = "from pipeline import cli, push; push.export = lambda *_, **__: push.PushSummary((), 0, ''); cli.main()"
    own = {"HF_ENDPOINT": huggingface_hub.constants.ENDPOINT, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    name, option = command.split()
    line = [sys.executable, "-c", code, name, str(tmp_path / "tiny.yaml"), option]
    line += ["--workspace", str(exported.workspace.root)]
    with subprocess.Popen(line, cwd=ROOT, env={**os.environ, **own}) as process:
        while not exported.hub.made(request):
            assert process.poll() is None
            exported.hub.heard.wait(0.02)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(20) == 75
        finally:
            process.kill()


def test_gpt2s_vocabulary_on_a_hub_that_hangs_is_given_up_with_advice(impatient, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    impatient.hub.faults = [Fault("vocab.json", "hang", times=1000)]
    with pytest.raises(DataError, match=r"nor GPT-2 on the Hub.*\n  pip install"):
        vocabulary._downloaded_gpt2()
    assert impatient.hub.made("vocab.json") >= 1


def test_a_corpus_on_a_hub_that_hangs_is_given_up_with_advice_and_told_of_meanwhile(impatient, tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "BEAT_SECONDS", 0.01)
    impatient.hub.faults = [Fault("^GET", "hang", times=1000)]
    told, source = Told(), HubSource(hub="some/corpus")
    with pytest.raises(DataError) as refused:
        saved_dataset(impatient.experiment, source, tmp_path / "sources", fetch=True, progress=told)
    message = str(refused.value)
    assert message.startswith(
        "data.source.hub: cannot fetch the dataset some/corpus at revision main: no connection to the Hub, "
    )
    assert message.endswith("\n  run the same command again once the Hub answers: what is fetched is kept")
    assert told.waits[0] == "fetch some/corpus from the Hub: no answer yet after 0 s"
