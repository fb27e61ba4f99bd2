"""A tag names what `main` holds and a collection holds all runs, once each, whatever goes wrong on the way."""

import random
import signal

import pytest
from hub_collections import Collection
from hub_uploads import Fault, Kill
from published import ALIAS, BATTLESTAR, Exported

from mistral.config import load_experiment
from mistral.errors import ConfigError, Findings

TITLE = "Tiny models"
BOTH = [("model", ALIAS), ("model", BATTLESTAR)]


@pytest.fixture
def released(exported):
    """Two runs with a tag and a collection, nothing published yet."""
    exported.export("alias", 0, 9)
    exported.export("battlestar", 0, 9)
    exported.choose(tag="v1.0", collection=TITLE)
    return exported


def tags(exported: Exported) -> dict[str, dict[str, str]]:
    return {name.partition("/")[2]: found for name, found in exported.hub.tags.items()}


def mains(exported: Exported) -> dict[str, dict[str, str]]:
    """The tags that there should be."""
    return {name.partition("/")[2]: {"v1.0": found["main"]} for name, found in exported.hub.branches.items()}


def collections(exported: Exported) -> dict[str, Collection]:
    return exported.hub.collections.all


def test_main_of_each_run_is_tagged_and_one_collection_holds_both(released):
    released.push()
    assert tags(released) == mains(released)
    [(slug, found)] = collections(released).items()
    assert slug.startswith("crfm/")
    assert (found.title, found.private, found.items) == (TITLE, True, BOTH)
    assert released.problems() == []


def test_what_is_there_is_not_made_again(released):
    released.push()
    released.hub.requests.clear()
    assert released.push() == ()
    assert released.hub.made("/tag/|^POST .*/collections|^PATCH") == 0


def test_without_them_the_hub_is_not_asked_for_any(exported):
    exported.export("alias", 0)
    exported.push()
    assert exported.problems() == []
    assert exported.hub.made("/tag/|/collections|/revision/") == 0


def test_a_tag_on_another_commit_is_named_and_not_moved(released):
    released.push()
    before = tags(released)
    released.export("alias", 10)
    with pytest.raises(
        Findings, match=rf"{ALIAS}: found the tag v1\.0 on the commit {before[ALIAS]['v1.0']}, expected"
    ):
        released.push()
    assert tags(released) == before
    assert sorted(released.hub.files(ALIAS)) == ["checkpoint-0", "checkpoint-10", "checkpoint-9", "main"]
    [problem] = released.problems()
    assert problem.startswith(
        f"{ALIAS}: found the tag v1.0 on the commit {before[ALIAS]['v1.0']}, expected that of main"
    )
    released.choose(tag="v1.1")
    released.push()
    assert set(tags(released)[ALIAS]) == {"v1.0", "v1.1"}
    assert released.problems() == []


def test_a_tag_waits_until_main_holds_the_last_exported_step(released):
    released.push(steps=[0])
    assert tags(released) == {ALIAS: {}, BATTLESTAR: {}}
    released.push()
    assert tags(released) == mains(released)


def test_a_run_whose_main_is_refused_gets_no_tag(released):
    released.push(seeds=["battlestar"])
    released.hub.create(f"models/{ALIAS}", private=True)
    released.hub.put(f"models/{ALIAS}", "main", {"model.safetensors": b"mine"})
    with pytest.raises(Findings):
        released.push()
    assert tags(released)[ALIAS] == {}


def test_runs_join_the_collection_as_they_are_published_and_what_else_is_in_it_stays(released):
    others = [("dataset", f"crfm/corpus-{number}") for number in range(5)]  # a list tells of four
    collections(released)["crfm/tiny-models-0"] = Collection(TITLE, False, list(others))
    collections(released)["other/tiny-models-1"] = Collection(TITLE, False)
    released.push(seeds=["battlestar"])
    released.push()
    assert {slug: found.items for slug, found in collections(released).items()} == {
        "crfm/tiny-models-0": [*others, *reversed(BOTH)],
        "other/tiny-models-1": [],
    }
    assert released.problems() == []


def test_a_collection_is_private_unless_it_is_to_be_public(released):
    for public, private in ((False, True), (True, False), (False, False)):
        released.push(public=public)
        assert [found.private for found in collections(released).values()] == [private]


# --- what goes wrong on the way ---------------------------------------------------------------------------------

CALLS = [
    "^POST .*/tag/",
    "/revision/",
    "^GET .*/collections$",
    "^GET .*/collections/",
    "^POST .*/collections$",
    "/items$",
]


@pytest.mark.parametrize("request_", CALLS)
@pytest.mark.parametrize("what", ["429", "503", "504-after", "drop", "drop-after"])
def test_a_call_is_made_again_until_it_is_answered_and_nothing_is_made_twice(released, request_, what):
    released.hub.faults = [Fault(request_, what, times=2)]
    released.push()
    assert released.hub.faults[0].times < 2, "an answer that was lost is not always asked for again"
    assert tags(released) == mains(released)
    assert [found.items for found in collections(released).values()] == [BOTH]


def publish(exported: Exported) -> None:
    exported.push()


def test_a_release_that_is_killed_at_any_request_is_finished_by_the_next_call(released, fork):
    released.choose(tag=None, collection=None)
    released.push()
    released.choose(tag="v1.0", collection=TITLE)
    chance = random.Random(3)
    for request in range(1, 100):
        released.hub.tags = {name: {} for name in released.hub.tags}
        collections(released).clear()
        worker = fork.Process(target=publish, args=(released,))
        with released.hub.lock:
            worker.start()
            released.hub.kill = Kill(worker.pid, request, after=chance.random() < 0.5)
        worker.join()
        if worker.exitcode == 0:  # it made fewer requests than that
            released.hub.kill = None
            break
        assert worker.exitcode == -signal.SIGKILL
        released.push()
        assert tags(released) == mains(released)
        assert [found.items for found in collections(released).values()] == [BOTH]
    assert request > 10


def test_two_processes_that_release_at_once_make_nothing_twice(released, fork):
    workers = [fork.Process(target=publish, args=(released,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert tags(released) == mains(released)
    assert [sorted(found.items) for found in collections(released).values()] == [BOTH]


# --- what verify --remote finds ---------------------------------------------------------------------------------


def test_a_missing_tag_and_a_missing_member_are_named(released):
    released.push()
    released.hub.tags[f"models/{ALIAS}"].clear()
    [(slug, found)] = collections(released).items()
    found.items.remove(("model", BATTLESTAR))
    assert released.problems() == [
        f"{ALIAS}: found no tag v1.0, expected it on main; run export --push",
        f"{slug}: found a collection without {BATTLESTAR}, expected it; run export --push",
    ]
    released.push()
    assert released.problems() == []


def test_a_collection_that_is_not_there_or_not_to_be_seen_is_named(released, monkeypatch):
    released.push(public=True)
    [found] = collections(released).values()
    found.private = True
    monkeypatch.delenv("HF_TOKEN")
    [problem] = released.problems()
    assert problem.startswith(f"crfm: found no collection '{TITLE}' that may be read, expected one of all runs")


@pytest.mark.parametrize(
    "tag", ["main", "checkpoint-10", "a b", "", "v1..0", ".v1", "v1.lock", "v1/0", "-1", "0123abcd", "a~", "x" * 65]
)
def test_a_tag_that_git_or_a_branch_does_not_leave_free_is_refused(exported, tmp_path, tag):
    with pytest.raises(ConfigError, match=r"export\.tag: found"):
        load_experiment(str(tmp_path / "tiny.yaml"), (f"export.tag='{tag}'",))
