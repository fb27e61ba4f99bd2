"""Publishing ends in the recorded revisions, whatever goes wrong on the way, and tells nobody the token."""

import itertools
import json
import random
import signal
import time
from email.utils import formatdate

import huggingface_hub.constants
import pytest
from hub_uploads import OWN, Fault, Kill
from published import ALIAS, BATTLESTAR, Exported

from mistral.errors import EnvironmentProblem, Findings


def test_each_step_has_a_branch_with_its_bytes_and_main_is_the_last_by_number(exported):
    exported.export("alias", 0, 9, 10, 20)
    exported.export("battlestar", 0, 10)
    pushed = exported.push()
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0, 9, 10, 20)
    assert exported.hub.files(BATTLESTAR) == exported.expected("battlestar", 0, 10)
    assert pushed[:5] == tuple(f"{ALIAS}@{name}" for name in [*(f"checkpoint-{n}" for n in (0, 9, 10, 20)), "main"])
    assert exported.hub.made("^POST .*/commit/") == 8
    assert exported.problems() == []


def test_what_is_there_is_not_sent_again_and_main_moves_on(exported):
    exported.export("alias", 0, 9)
    exported.push()
    exported.hub.requests.clear()
    assert exported.push() == ()
    assert exported.hub.made("/commit/|^PUT|/branch/|/batch|/preupload/") == 0
    exported.export("alias", 10)
    assert exported.push() == (f"{ALIAS}@checkpoint-10", f"{ALIAS}@main")
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0, 9, 10)
    assert exported.hub.made("^PUT /lfs/") == 1, "main shares the large file of its step"


def test_a_step_that_is_left_out_is_published_later_and_main_never_goes_back(exported):
    exported.export("alias", 0, 9, 10)
    exported.push(steps=[0, 10])
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0, 10)
    exported.push(steps=[9])
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0, 9, 10)


def test_main_never_goes_back_when_the_branch_of_its_step_is_gone(exported):
    exported.export("alias", 0, 9, 10)
    exported.push()
    del exported.hub.branches[f"models/{ALIAS}"]["checkpoint-10"]
    exported.push(steps=[0])
    assert exported.hub.files(ALIAS)["main"] == exported.expected("alias", 10)["main"]
    exported.push()
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0, 9, 10)


def test_a_repository_is_private_unless_it_is_to_be_public(exported):
    exported.export("alias", 0)
    exported.push()
    assert exported.hub.private == {f"models/{ALIAS}": True}
    exported.push(public=True)
    assert exported.hub.private == {f"models/{ALIAS}": False}
    exported.push()
    assert exported.hub.private == {f"models/{ALIAS}": False}, "what is public stays so"


def test_the_registry_names_each_run_and_the_commit_of_each_revision(exported):
    exported.export("alias", 0, 9, 10)
    exported.push(steps=[0, 9])
    exported.export("battlestar", 0)
    exported.push(seeds=["battlestar"])
    path = exported.manifest.workspace.registry("tiny")
    registry = json.loads(path.read_text())
    heads = exported.hub.branches[f"models/{ALIAS}"]
    assert (registry["experiment"], registry["organization"], registry["collection"]) == ("tiny", "crfm", None)
    assert [model["run"] for model in registry["models"]] == ["alias-tiny-x21", "battlestar-tiny-x49"]
    assert registry["models"][0] == {
        "run": "alias-tiny-x21",
        "seed": {"name": "alias", "init": 21, "data": 21, "dropout": 21},
        "url": f"{huggingface_hub.constants.ENDPOINT}/{ALIAS}",
        "public": False,
        "main": "checkpoint-9",
        "tag": None,
        "revisions": {name: heads[name] for name in ("checkpoint-0", "checkpoint-9")},
    }


# --- what goes wrong on the way ---------------------------------------------------------------------------------

COMMIT = "^POST .*/commit/"


@pytest.mark.parametrize(
    "request_", ["repos/create", "/refs", "/commits/", "/branch/", "validate-yaml", "/preupload/", "/batch", "/tree/",
                 "^PUT /lfs/", "^POST /lfs/", COMMIT],
)  # fmt: skip
@pytest.mark.parametrize("what", ["429", "503", "504-after", "drop", "drop-after"])
def test_a_call_is_made_again_until_it_is_answered_and_nothing_is_committed_twice(exported, request_, what):
    exported.export("alias", 0, 2)
    exported.hub.faults = [Fault(request_, what, times=2)]
    exported.push()
    assert exported.hub.faults[0].times == 0
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0, 2)
    lengths = [len(exported.hub.history(ALIAS, c)) for c in exported.hub.branches[f"models/{ALIAS}"].values()]
    assert lengths == [2, 2, 2], "each branch has the first commit and one of its own"
    assert exported.problems() == []


def test_the_hub_is_left_alone_for_as_long_as_it_asks(exported, monkeypatch):
    exported.export("alias", 0)
    slept: list[float] = []
    monkeypatch.setattr("mistral.asking.pause", lambda seconds, *_: slept.append(seconds))
    limit = {"RateLimit": '"api";r=0;t=55'}
    date = {"Retry-After": formatdate(time.time() + 5000, usegmt=True)}
    exported.hub.faults = [
        Fault(COMMIT, "429", headers={"Retry-After": "1800"}), Fault(COMMIT, "429", headers=limit),
        Fault(COMMIT, "429", headers=date), Fault(COMMIT, "429"), Fault(COMMIT, "503"),
    ]  # fmt: skip
    exported.push()
    assert [seconds for seconds in slept if seconds != slept[2]] == [1800, 55, 8, 16]
    assert 4000 < slept[2] <= 5000


def test_a_hub_that_asks_to_be_left_alone_for_days_ends_the_command_with_advice(exported):
    exported.export("alias", 0)
    exported.hub.faults = [Fault(COMMIT, "429", headers={"Retry-After": "360000"})]
    with pytest.raises(EnvironmentProblem, match=r"429 Too Many Requests\n  run the same command again in 100\.0 h"):
        exported.push()


def test_a_hub_that_never_answers_ends_the_command_with_advice(exported):
    exported.export("alias", 0)
    exported.hub.faults = [Fault(COMMIT, "503", times=100)]
    with pytest.raises(EnvironmentProblem, match=r"503 Service Unavailable, after 8 attempts\n  run the same command"):
        exported.push()
    exported.hub.faults = []
    exported.push()
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0)


def test_a_large_file_that_arrives_damaged_is_sent_again(exported):
    exported.export("alias", 0)
    exported.hub.faults = [Fault("^PUT /lfs/", "corrupt", times=2)]
    exported.push()
    assert exported.hub.made("^PUT /lfs/") == 3
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0)


PARTS = ["^PUT /lfs/.*/00002", "^POST /lfs/.*/complete"]


@pytest.mark.parametrize(
    ("request_", "what"),
    [*itertools.product(PARTS, ["503", "504-after", "drop", "drop-after"]), (PARTS[0], "corrupt")],
)
def test_a_large_file_that_is_sent_in_parts_arrives_whole(exported, request_, what):
    exported.hub.part_bytes = 64
    exported.export("alias", 0, 2)
    exported.hub.faults = [Fault(request_, what, times=2)]
    exported.push()
    assert exported.hub.made("^PUT /lfs/.*/0000[1-4]$") == exported.hub.made("^PUT /lfs/") >= 8
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0, 2)
    assert exported.problems() == []


def test_a_commit_that_arrives_with_another_hash_is_told_and_main_stays_as_it_was(exported):
    exported.export("alias", 0, 1)
    exported.push()
    exported.export("alias", 2)
    exported.hub.faults = [Fault(COMMIT, "corrupt")]
    with pytest.raises(Findings, match=r"checkpoint-2: model\.safetensors: found sha256"):
        exported.push()
    assert exported.hub.files(ALIAS)["main"] == exported.expected("alias", 1)["main"]
    problems = exported.problems()
    assert f"{ALIAS}@checkpoint-2: holds the model of alias-tiny-x21/checkpoint-0" in problems[0]
    with pytest.raises(Findings, match="remove it on the Hub"):
        exported.push()
    del exported.hub.branches[f"models/{ALIAS}"]["checkpoint-2"]
    exported.push()
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0, 1, 2)


def test_a_repository_that_is_taken_away_meanwhile_ends_the_command_with_advice(exported):
    exported.export("alias", 0)
    exported.hub.faults = [Fault("/commits/", "404", headers={"X-Error-Code": "RepoNotFound"})]
    with pytest.raises(EnvironmentProblem, match=r"cannot list the commits of .*: the Hub answered 404 Not Found"):
        exported.push()


def test_a_folder_that_changed_since_it_was_recorded_is_not_published(exported):
    exported.export("alias", 0, 1)
    (exported.manifest.workspace.export("alias-tiny-x21", 0) / "config.json").write_text("{}")
    with pytest.raises(Findings, match=r"checkpoint-0/config\.json: found 2 bytes"):
        exported.push()
    assert sorted(exported.hub.files(ALIAS)) == ["checkpoint-1", "main"]
    assert exported.hub.files(ALIAS)["main"] == OWN


def test_a_repository_of_somebody_else_is_left_as_it_is(exported):
    exported.export("alias", 0)
    exported.hub.create(f"models/{ALIAS}", private=True)
    exported.hub.put(f"models/{ALIAS}", "main", {"model.safetensors": b"mine"})
    before = exported.hub.files(ALIAS)
    with pytest.raises(Findings, match="in its first commit"):
        exported.push()
    assert exported.hub.files(ALIAS) == before


def publish(exported: Exported) -> None:
    exported.push()


def test_two_processes_that_publish_at_once_commit_nothing_twice(exported, fork):
    exported.export("alias", *range(10))
    workers = [fork.Process(target=publish, args=(exported,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert exported.hub.files(ALIAS) == exported.expected("alias", *range(10))
    assert {len(exported.hub.history(ALIAS, c)) for c in exported.hub.branches[f"models/{ALIAS}"].values()} == {2}


@pytest.mark.parametrize("seed", [1, 2])
def test_fifty_revisions_that_are_killed_ten_times_end_equal(exported, fork, seed):
    chance, steps = random.Random(seed), range(1, 51)
    exported.export("alias", *steps)
    whole = exported.expected("alias", *steps)
    for _ in range(10):
        worker = fork.Process(target=publish, args=(exported,))
        with exported.hub.lock:
            worker.start()
            exported.hub.kill = Kill(worker.pid, chance.randint(1, 70), after=chance.random() < 0.5)
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        for name, files in exported.hub.files(ALIAS).items() if exported.hub.private else ():
            assert files in (OWN, whole[name]), "a branch is empty or whole, and never another step's"
    exported.push()
    assert exported.hub.files(ALIAS) == whole
    lengths = {len(exported.hub.history(ALIAS, c)) for c in exported.hub.branches[f"models/{ALIAS}"].values()}
    assert lengths == {2}
    assert exported.problems() == []
