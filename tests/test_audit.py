"""verify --remote names whatever the Hub holds that is not what was recorded."""

import pytest
from hub_uploads import OWN
from published import ALIAS, BATTLESTAR

from mistral.config import load_experiment
from mistral.errors import ConfigError
from mistral.files import sha256_of


@pytest.fixture
def published(exported):
    """Two runs on the Hub, as they were recorded."""
    exported.export("alias", 0, 9, 10)
    exported.export("battlestar", 0, 9, 10)
    exported.push()
    assert exported.problems() == []
    return exported


def swap(exported, repository: str, one: str, other: str) -> None:
    branches = exported.hub.branches[f"models/{repository}"]
    branches[one], branches[other] = branches[other], branches[one]


def test_a_missing_branch_is_named_with_all_of_its_kind(published):
    for name in ("checkpoint-0", "checkpoint-9"):
        del published.hub.branches[f"models/{ALIAS}"][name]
    assert published.problems() == [f"{ALIAS}: found no branch checkpoint-0, checkpoint-9; run export --push"]


def test_branches_that_were_never_recorded_are_named(published):
    published.hub.put(f"models/{ALIAS}", "checkpoint-11", {})
    published.hub.put(f"models/{ALIAS}", "experiment", {})
    [problem] = published.problems()
    assert problem.startswith(f"{ALIAS}: found the branches checkpoint-11, experiment, expected recorded steps only")


def test_swapped_steps_are_named_with_what_they_hold(published):
    swap(published, ALIAS, "checkpoint-0", "checkpoint-9")
    problems = [line for line in published.problems() if "holds the model" in line]
    run = "alias-tiny-x21"
    assert problems == [
        f"{ALIAS}@checkpoint-0: holds the model of {run}/checkpoint-9, expected that of {run}/checkpoint-0",
        f"{ALIAS}@checkpoint-9: holds the model of {run}/checkpoint-0, expected that of {run}/checkpoint-9",
    ]


def test_a_step_that_serves_the_last_model_and_one_of_another_run_are_named(published):
    branches = published.hub.branches
    branches[f"models/{ALIAS}"]["checkpoint-0"] = branches[f"models/{ALIAS}"]["checkpoint-10"]
    other = published.hub.files(ALIAS)["checkpoint-9"]
    published.hub.put(f"models/{BATTLESTAR}", "checkpoint-9", other)
    problems = [line for line in published.problems() if "holds the model" in line]
    assert [line.partition(", expected")[0] for line in problems] == [
        f"{ALIAS}@checkpoint-0: holds the model of alias-tiny-x21/checkpoint-10",
        f"{BATTLESTAR}@checkpoint-9: holds the model of alias-tiny-x21/checkpoint-9",
    ]


def test_main_at_another_step_than_the_last_by_number_is_named(published):
    """`checkpoint-9` is the last one as text is sorted."""
    branches = published.hub.branches[f"models/{ALIAS}"]
    branches["main"] = branches["checkpoint-9"]
    problems = published.problems()
    assert problems[0].startswith(f"{ALIAS}@main: holds the model of alias-tiny-x21/checkpoint-9, expected")
    assert all(line.startswith(f"{ALIAS}@main: ") for line in problems)


def test_changed_missing_and_added_files_are_named(published):
    files = published.hub.files(ALIAS)["checkpoint-9"]
    changed = {**files, "config.json": files["config.json"].replace(b"2", b"3"), "pickle.bin": b"x"}
    del changed["README.md"]
    published.hub.put(f"models/{ALIAS}", "checkpoint-9", changed)
    damaged = {**published.hub.files(ALIAS)["checkpoint-0"], "model.safetensors": b"\0" * 200}
    published.hub.put(f"models/{ALIAS}", "checkpoint-0", damaged)
    expected = sha256_of(published.manifest.workspace.export("alias-tiny-x21", 0) / "model.safetensors")
    problems = published.problems()
    assert problems[0].startswith(f"{ALIAS}@checkpoint-0: model.safetensors: found sha256 ")
    assert problems[0].endswith(f", expected {expected[:12]}")
    assert problems[1] == f"{ALIAS}@checkpoint-9: README.md: missing"
    assert problems[2] == f"{ALIAS}@checkpoint-9: pickle.bin: found a file that is not recorded"
    assert problems[3].startswith(f"{ALIAS}@checkpoint-9: config.json: found git sha1 ")
    assert len(problems) == 4


def test_an_empty_branch_and_a_shorter_file_are_named(published):
    published.hub.put(f"models/{ALIAS}", "checkpoint-0", OWN)
    files = published.hub.files(ALIAS)["checkpoint-9"]
    published.hub.put(f"models/{ALIAS}", "checkpoint-9", {**files, "README.md": b"#"})
    problems = published.problems()
    assert problems[0].startswith(f"{ALIAS}@checkpoint-0: found no files")
    assert problems[1].startswith(f"{ALIAS}@checkpoint-9: README.md: found 1 bytes, expected ")
    assert len(problems) == 2


def test_a_file_that_changed_here_since_it_was_recorded_is_no_witness(published):
    path = published.manifest.workspace.export("alias-tiny-x21", 9) / "README.md"
    path.write_text(path.read_text().replace("9", "8"))
    [problem] = published.problems()
    assert problem.startswith(f"{ALIAS}@checkpoint-9: README.md: cannot be compared")


def test_a_repository_that_is_not_there_or_not_to_be_seen_is_named(published, monkeypatch):
    del published.hub.private[f"models/{BATTLESTAR}"]
    [problem] = published.problems()
    assert problem.startswith(f"{BATTLESTAR}: found no repository that may be read, expected one of 3 revisions")
    monkeypatch.delenv("HF_TOKEN")
    assert len(published.problems()) == 2, "alias is private"
    published.hub.private[f"models/{ALIAS}"] = False
    [opened, missing] = published.problems()
    assert missing == problem, "what is public needs no token"
    assert opened.startswith(
        f"{ALIAS}: found a public repository, expected a private one, as it was published; make it"
    )


def test_nothing_published_is_nothing_proven(exported, tmp_path):
    assert exported.problems() == ["tiny: found no exported checkpoint, expected some to compare; run export"]
    exported.experiment = load_experiment(str(tmp_path / "tiny.yaml"), ("export.organization=null",))
    with pytest.raises(ConfigError, match=r"export\.organization: found none, expected"):
        exported.problems()
