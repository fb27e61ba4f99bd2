"""A second push asks the Hub for little, and believes only the commits that were compared: those that receipts name."""

import json
import time

import pytest
from hub_uploads import OWN
from published import ALIAS, BATTLESTAR
from told import Clock, Told

from mistral.errors import Findings
from mistral.files import digest_of
from pipeline.push import push

STEPS = (0, 9, 10, 20)


@pytest.fixture
def published(exported):
    """Two runs on the Hub."""
    exported.export("alias", *STEPS)
    exported.export("battlestar", *STEPS)
    exported.push()
    exported.hub.requests.clear()
    return exported


def lines(exported) -> list[list[str]]:
    return [json.loads(line) for line in exported.workspace.receipts().read_text().splitlines()]


def test_a_push_of_what_is_published_costs_two_requests_for_each_repository_however_many_branches_it_has(published):
    assert published.push() == ()
    assert len(published.hub.requests) == 4
    told = Told()
    summary = push(published.experiment, published.workspace, told)
    assert (summary.pushed, summary.already) == ((), 8)
    assert told.lines == ["all 8 revisions of 2 repositories are on the Hub, as far as receipts tell"]


def test_one_more_step_is_sent_without_a_look_at_the_others(published):
    published.export("alias", 30)
    assert published.push() == (f"{ALIAS}@checkpoint-30", f"{ALIAS}@main")
    assert published.hub.made("/tree/") == 4, "the first commit, main, and what was sent"
    assert published.problems() == []


@pytest.mark.parametrize("what", ["removed", "torn", "rubbish", "another's", "swapped", "edited", "of another Hub"])
def test_a_missing_or_wrong_receipt_costs_requests_and_changes_nothing(published, what):
    path = published.workspace.receipts()
    entries = lines(published)
    assert len(entries) == 10
    text = path.read_text()
    if what == "removed":
        path.unlink()
    elif what == "torn":
        path.write_text(text[:-20])
    elif what == "rubbish":
        path.write_bytes(b"\xff[]\n{}\nnull\n[1, 2, 3, 4]\n" + text.encode())
    else:
        for one, other in zip(entries, [*entries[1:], entries[0]], strict=True):
            if what == "another's":
                one[1] = other[1]
            elif what == "swapped":
                one[2] = other[2]
            elif what == "edited":
                one[0] = one[0].replace("checkpoint-9", "checkpoint-10")
                continue
            else:
                one[0] = "https://elsewhere" + one[0][one[0].index("/crfm") :]
            one[3] = digest_of(one[:3])
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert published.push() == ()
    assert published.hub.made("/commit/") == 0
    assert published.hub.files(ALIAS) == published.expected("alias", *STEPS)
    published.hub.requests.clear()
    published.push()
    assert len(published.hub.requests) == 4, "they are written anew"


@pytest.mark.parametrize("branch", ["checkpoint-9", "main"])
def test_a_branch_that_changed_since_is_compared_whatever_receipts_tell(published, branch):
    published.hub.put(f"models/{ALIAS}", branch, {"model.safetensors": b"of somebody else"})
    with pytest.raises(Findings, match=rf"{ALIAS}.*expected"):
        published.push()
    published.hub.put(f"models/{ALIAS}", branch, {**published.hub.files(BATTLESTAR)[branch]})
    with pytest.raises(Findings, match=rf"{ALIAS}.*expected"):
        published.push()


def test_a_receipt_that_gives_the_commit_of_another_step_is_not_believed(published):
    branches = published.hub.branches[f"models/{ALIAS}"]
    branches["checkpoint-9"] = branches["checkpoint-10"]
    record = published.manifest.get("export", ("alias-tiny-x21", "checkpoint-9"), "")
    place = next(entry[0] for entry in lines(published) if entry[0].endswith("x21@checkpoint-9"))
    forged = [place, record.content, branches["checkpoint-10"]]
    with published.workspace.receipts().open("a") as file:
        file.write(json.dumps([*forged, digest_of(forged)]) + "\n")
    with pytest.raises(Findings, match=rf"{ALIAS}@checkpoint-9: model\.safetensors: found sha256"):
        published.push()


def test_branches_that_were_swapped_are_found_although_both_commits_have_receipts(published):
    branches = published.hub.branches[f"models/{ALIAS}"]
    branches["checkpoint-9"], branches["checkpoint-10"] = branches["checkpoint-10"], branches["checkpoint-9"]
    with pytest.raises(Findings) as found:
        published.push()
    assert f"{ALIAS}@checkpoint-9: model.safetensors: found sha256 " in str(found.value)
    assert f"{ALIAS}@checkpoint-10: model.safetensors: found sha256 " in str(found.value)


def test_what_is_exported_anew_with_other_bytes_is_compared(published):
    folder = published.workspace.export("alias-tiny-x21", 9)
    published.manifest.remove("export", ("alias-tiny-x21", "checkpoint-9"))
    (folder / "README.md").write_text("# another card\n")
    published.record(folder, 9)
    with pytest.raises(Findings, match=r"checkpoint-9: README\.md: found"):
        published.push()


def test_a_commit_that_arrived_damaged_gets_no_receipt(exported):
    from hub_uploads import Fault

    exported.export("alias", 0, 1)
    exported.push()
    exported.export("alias", 2)
    exported.hub.faults = [Fault("^POST .*/commit/", "corrupt")]
    with pytest.raises(Findings):
        exported.push()
    assert [entry for entry in lines(exported) if entry[0].endswith("@checkpoint-2")] == []
    with pytest.raises(Findings, match=r"checkpoint-2: model\.safetensors: found sha256"):
        exported.push()


def test_main_never_holds_a_step_whose_own_branch_is_empty(exported):
    """A kill may leave the branch of a later step without its content."""
    exported.export("alias", 0, 9)
    exported.push(steps=[0])
    root = exported.hub.history(ALIAS, exported.hub.branches[f"models/{ALIAS}"]["checkpoint-0"])[-1]
    exported.hub.branches[f"models/{ALIAS}"]["checkpoint-9"] = root
    exported.push(steps=[0])
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0) | {"checkpoint-9": OWN}
    exported.push()
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0, 9)


def test_the_whole_estimate_is_told_before_the_start_and_the_bar_is_told_what_the_pace_leaves(exported, monkeypatch):
    exported.export("alias", *STEPS)
    exported.push(steps=[0, 9])
    exported.export("battlestar", *STEPS)
    exported.choose(commits_per_hour=4)
    told = Told()
    monkeypatch.setattr("pipeline.push.Pace", Clock(time.time() + 7200).pace)
    push(exported.experiment, exported.workspace, told)
    first = told.lines[0].splitlines()
    assert first[0] == "to publish: 6 of 8 revisions in 2 repositories: 0.00 GB"
    assert first[1] == "  this takes at least 1.0 h at 4 commits an hour (export.commits_per_hour)"
    assert [round(seconds) for seconds in told.expected] == [0, 0, 0, 0, 3600, 3600, 0, 0]


def test_a_branch_without_a_receipt_counts_as_one_to_compare(published):
    published.workspace.receipts().unlink()
    told = Told()
    push(published.experiment, published.workspace, told)
    assert told.lines[0].startswith("to publish: 0 of 8 revisions in 2 repositories: 0.00 GB, and 8 to compare\n")
