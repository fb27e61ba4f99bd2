"""verify --remote names whatever the Hub holds that is not what was recorded."""

import pytest
from hub_uploads import OWN, Fault
from published import ALIAS, BATTLESTAR

from mistral.config import load_experiment
from mistral.errors import ConfigError, EnvironmentProblem, Findings
from mistral.files import sha256_of
from pipeline.verify import VerifyReport


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


# --- what is not a file of a revision ---------------------------------------------------------------------------


def change_own_file(exported, branch: str, text: bytes | None) -> None:
    files = {name: data for name, data in exported.hub.files(ALIAS)[branch].items() if name not in OWN}
    files |= {} if text is None else {".gitattributes": text}
    repository = f"models/{ALIAS}"
    exported.hub.branches[repository][branch] = exported.hub.add(repository, files, None)


@pytest.mark.parametrize("branch", ["checkpoint-9", "main"])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, ".gitattributes: missing"),
        (b"*.json filter=lfs diff=lfs merge=lfs -text\n", ".gitattributes: found 43 bytes that differ"),
        (OWN[".gitattributes"] + b"*.bin filter=lfs diff=lfs merge=lfs -text\n", ".gitattributes: found 92 bytes"),
    ],
)
def test_the_hubs_own_file_is_seen_by_verify_and_left_alone_by_push(published, branch, text, told):
    first = published.hub.history(ALIAS, published.hub.branches[f"models/{ALIAS}"]["checkpoint-0"])[-1]
    change_own_file(published, branch, text)
    published.hub.parents[published.hub.branches[f"models/{ALIAS}"][branch]] = first
    [problem] = published.problems()
    assert problem.startswith(f"{ALIAS}@{branch}: {told}")
    before = published.hub.files(ALIAS)
    with pytest.raises(Findings, match=rf"{ALIAS}@{branch}: {told}"):
        published.push()
    assert published.hub.files(ALIAS) == before


def test_a_line_that_the_hub_adds_for_a_large_recorded_file_is_no_problem(published):
    added = OWN[".gitattributes"] + b"config.json filter=lfs diff=lfs merge=lfs -text\n"
    change_own_file(published, "checkpoint-9", added)
    assert published.problems() == []
    assert published.push() == ()


@pytest.mark.parametrize("public", [False, True])
def test_a_repository_that_others_see_otherwise_than_it_was_published_is_named_until_push_is_told_to_keep_it(
    published, public
):
    published.push(public=public)
    published.hub.private[f"models/{ALIAS}"] = public
    [problem] = published.problems()
    found, expected = ("private", "public") if public else ("public", "private")
    assert problem.startswith(f"{ALIAS}: found a {found} repository, expected a {expected} one, as it was published; ")
    published.push()
    assert published.problems() == []
    assert published.hub.private[f"models/{ALIAS}"] == public


def test_a_missing_main_is_named_and_the_next_push_makes_it_again(published):
    del published.hub.branches[f"models/{ALIAS}"]["main"]
    assert published.problems() == [
        f"{ALIAS}: found no branch main, expected it to hold checkpoint-10; run export --push"
    ]
    assert published.push() == (f"{ALIAS}@main",)
    assert published.hub.files(ALIAS) == published.expected("alias", 0, 9, 10)
    assert published.problems() == []


def test_a_repository_without_any_branch_is_told_with_what_to_do(published):
    published.hub.branches[f"models/{ALIAS}"].clear()
    assert (
        published.problems()[1]
        == f"{ALIAS}: found no branch main, expected it to hold checkpoint-10; run export --push"
    )
    with pytest.raises(EnvironmentProblem, match=r"found a repository without any branch, expected main\n  remove the"):
        published.push()


def test_a_renamed_repository_is_told_by_verify_and_by_push_which_sends_nothing(published):
    for table in (published.hub.private, published.hub.branches, published.hub.tags, published.hub.commits):
        table["models/crfm/renamed"] = table.pop(f"models/{ALIAS}")
    published.hub.renamed[f"models/{ALIAS}"] = "models/crfm/renamed"
    [problem] = published.problems()
    assert problem.startswith(f"{ALIAS}: found it renamed to crfm/renamed, expected the name that its model cards tell")
    published.export("alias", 20)
    published.hub.requests.clear()
    with pytest.raises(Findings, match=r"found it renamed to crfm/renamed, .*; rename it back"):
        published.push()
    assert published.hub.made("^POST|^PUT") == 0


def test_another_spelling_of_the_name_is_no_other_name(published, tmp_path):
    published.hub.renamed["models/CRFM/"] = "models/crfm/"
    published.experiment = load_experiment(str(tmp_path / "tiny.yaml"), ("export.organization=CRFM",))
    assert published.problems() == []


# --- listings that lag behind -----------------------------------------------------------------------------------


@pytest.mark.parametrize("requests", [1, 3, 6])
def test_a_listing_that_lags_behind_is_waited_for(published, requests):
    published.hub.lag_behind(0)
    before = {name: dict(branches) for name, branches in published.hub.branches.items()}
    published.export("alias", 20)
    published.push()
    published.hub.lag_behind(requests)
    published.hub.before = before
    assert published.problems() == []
    assert published.hub.lag == 0


@pytest.mark.parametrize("requests", [1, 2, 5])
@pytest.mark.parametrize("lost", [False, True])
def test_push_waits_for_listings_that_lag_behind_its_commits(exported, requests, lost):
    exported.export("alias", 0, 9, 10)
    exported.hub.lag_after_commit = requests
    exported.hub.faults = [Fault("^POST .*/commit/", "drop-after", times=2)] if lost else []
    exported.push()
    exported.hub.lag_behind(0)
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0, 9, 10)
    assert {len(exported.hub.history(ALIAS, c)) for c in exported.hub.branches[f"models/{ALIAS}"].values()} == {2}


def test_hundreds_of_problems_are_not_waited_for(exported):
    exported.export("alias", *range(25))
    exported.push()
    for name in list(exported.hub.branches[f"models/{ALIAS}"]):
        exported.hub.put(f"models/{ALIAS}", name, {"README.md": b"#"})
    exported.hub.requests.clear()
    assert len(exported.problems()) > 25
    assert exported.hub.made("/refs") == 1


# --- what the command says --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("here", "there", "advice"),
    [
        (1, 0, "restore what differs from a copy; docs/operators.md says"),
        (0, 1, "the files here are as recorded; on the Hub remove what differs"),
        (1, 1, "restore what differs from a copy; docs/operators.md says what can be made again; on the Hub remove"),
    ],
)
def test_the_last_line_of_verify_speaks_of_what_differs(here, there, advice):
    published = ["a branch is missing"] * there
    report = VerifyReport(["a file changed"] * here + published, {}, [], published, 1, 1, 1)
    assert report.advice().startswith(advice)
