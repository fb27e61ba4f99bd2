"""Nothing that holds data is deleted because it looks wrong, and no run goes back to step 0 by itself."""

import errno
import shutil
from collections.abc import Callable

import pytest
import torch
from faults import at, faults
from test_training import Listener, flip_a_bit, hashes, recorded, stop_after, train

from mistral import training
from mistral.config import load_experiment
from mistral.errors import CheckpointError, Findings, ManifestError, PathError, Stopped, StorageError
from mistral.files import sha256_of
from mistral.loop import Loop
from mistral.progress import Silent
from mistral.run import Run
from mistral.setaside import look
from mistral.training import Hooks
from mistral.workspace import Workspace, step_name
from pipeline.clean import clean
from pipeline.export import export
from pipeline.preprocess import preprocess
from pipeline.restore import restore
from pipeline.status import status
from pipeline.train import TrainOptions, is_complete, owned
from pipeline.verify import verify

KEY = "alias-tiny-x21"


def go(run: Run, **options: bool) -> list[str]:
    """Train a run with options of the command line; returns what was said."""
    listener = Listener()
    with owned(run, TrainOptions(**options)) as ownership:
        training.train(run, ownership, Hooks(lambda: False, listener))
    return listener.said


def contents(run: Run) -> dict[str, str]:
    """Every file of the run and of the manifest with its hash; leases, which each attempt adds, are left out."""
    root = run.manifest.workspace.root
    files = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith("lease-")]
    return {path.relative_to(root).as_posix(): sha256_of(path) for path in files}


def stopped(run: Run, step: int) -> Run:
    """A run that was stopped at a step."""
    with pytest.raises(Stopped):
        train(run, stop_after(step))
    return run


@pytest.fixture
def halted(make_run: Callable[..., Run]) -> Run:
    """States 6 and 7, weights 0, 2 and 4."""
    return stopped(make_run(), 7)


def require_undisturbed(run: Run, make_run: Callable[..., Run]) -> None:
    """The run ends with the bits of one that nothing happened to."""
    other = make_run("name=other")
    train(other)
    for kind, steps in (("weights", (0, 2, 4, 8, 12)), ("state", (12,))):
        for step in steps:
            assert hashes(run, kind, step) == hashes(other, kind, step)


@pytest.mark.parametrize(
    ("event", "code", "name"),
    [
        ("open", errno.EIO, "state/step-00000007/state.safetensors"),
        ("stat", errno.ESTALE, "state/step-00000007/state.safetensors"),
        ("open", errno.EACCES, "state/step-00000007/state.json"),
        ("lstat", errno.EACCES, f"{KEY}/state"),
        ("listdir", errno.EIO, f"{KEY}/state"),
        ("scandir", errno.EIO, f"{KEY}/checkpoints"),
        ("open", errno.EIO, f"{KEY}/state/step-00000007.json"),
        ("scandir", errno.ESTALE, f"manifest/train/{KEY}/state"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_it_and_changes_nothing(halted, event, code, name):
    before = contents(halted)
    with faults(at(event, code, name)), pytest.raises(StorageError, match=rf"{name}.*{errno.errorcode[code]}"):
        train(halted)
    assert contents(halted) == before
    assert train(halted) == [f"{KEY}: going on from step 7"]


def test_a_damaged_state_and_folders_without_a_record_are_set_aside_whole(halted, make_run):
    workspace = halted.manifest.workspace
    flip_a_bit(workspace.state(KEY, 7) / "state.safetensors")
    for kind, step in (("checkpoints", 8), ("state", 99)):
        (workspace.run(KEY) / kind / step_name(step)).mkdir()
        (workspace.run(KEY) / kind / step_name(step) / "data").write_text(kind)
    held = {name: value for name, value in contents(halted).items() if "/step-" in name and name.startswith("runs/")}
    said = train(halted)
    names = ("state/step-00000007", "checkpoints/step-00000008", "state/step-00000099")
    assert [line.partition(" as ")[0] for line in said[:3]] == [f"{KEY}: set aside runs/{KEY}/{name}" for name in names]
    assert said[3:] == [f"{KEY}: going on from step 6"]
    reasons = {one.origin: one.reason for one in look(workspace, KEY)}
    assert "found sha256" in reasons[f"runs/{KEY}/state/step-00000007"]
    assert reasons[f"runs/{KEY}/state/step-00000099"] == "it has no record"
    report, shown = verify(workspace, Silent()), status(halted.experiment, workspace)
    assert report.problems == []
    assert report.set_aside == [one.path for one in look(workspace, KEY)] == list(shown.runs[0].set_aside)
    assert f"{KEY}: set aside {report.set_aside[0]} and 2 more" in shown.as_table()
    kept = set(contents(halted).values())
    older = {name for name in held if "state/step-00000006" in name}  # which made room for the states of steps 9 and 12
    assert {name for name, value in held.items() if value not in kept} == older
    require_undisturbed(halted, make_run)


def test_clean_removes_what_was_set_aside_and_follows_no_link(halted, tmp_path):
    workspace = halted.manifest.workspace
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("x")
    odd = workspace.state(KEY, 99)
    odd.mkdir()
    (odd / "link").symlink_to(tmp_path / "elsewhere")
    train(halted)
    shown = clean(halted.experiment, workspace, dry_run=True)
    assert [one.origin for one in shown.found] == [f"runs/{KEY}/state/step-00000099"]
    assert len(list(look(workspace, KEY))) == 1
    assert clean(None, workspace, dry_run=False).found == shown.found
    assert list(workspace.set_aside(KEY).iterdir()) == []
    assert (tmp_path / "elsewhere" / "precious").read_text() == "x"
    assert clean(halted.experiment, workspace, dry_run=False).as_text() == "nothing is set aside"
    (workspace.set_aside(KEY) / "kept").mkdir()
    (workspace.set_aside(KEY) / "top").symlink_to(tmp_path / "elsewhere")
    for dry_run in (True, False):
        with pytest.raises(PathError, match="set-aside/top: found a link"):
            clean(None, workspace, dry_run=dry_run)
    assert (workspace.set_aside(KEY) / "kept").is_dir()


# --- step 0 ------------------------------------------------------------------------------------------------------


def damage_all(run: Run) -> None:
    for step in (6, 7):
        flip_a_bit(run.manifest.workspace.state(run.name, step) / "state.safetensors")


def lose_records(run: Run) -> None:
    for name in run.manifest.names("train", (run.name, "state")):
        run.manifest.path("train", (run.name, "state", name)).unlink()


def lose_everything(run: Run) -> None:
    shutil.rmtree(run.manifest.path("train", (run.name, "state", "x")).parent)
    shutil.rmtree(run.manifest.workspace.run(run.name) / "state")


def lose_files(run: Run) -> None:
    shutil.rmtree(run.manifest.workspace.run(run.name) / "state")


@pytest.mark.parametrize("lose", [damage_all, lose_records, lose_everything, lose_files])
def test_a_run_that_saved_states_never_begins_again_by_itself(halted, make_run, lose):
    lose(halted)
    before = contents(halted)
    with pytest.raises(
        CheckpointError, match=r"a state of step \d was saved; nothing was changed\n(.|\n)*--from-step-0"
    ):
        train(halted)
    assert contents(halted) == before
    said = go(halted, from_step_0=True)
    assert said[-1] == f"{KEY}: no state can be used; training starts again from step 0"
    assert any(one.origin.endswith("metrics.jsonl") for one in look(halted.manifest.workspace, KEY))
    assert go(halted, from_step_0=True) == [f"{KEY}: going on from step 12"]  # as a job that runs again would
    require_undisturbed(halted, make_run)


def test_a_run_that_lost_the_record_of_its_beginning_does_not_begin_again(halted):
    halted.manifest.remove("train", (KEY, "begin"))
    before = contents(halted)
    with pytest.raises(ManifestError, match=r"begin.json: found no record, expected one, as checkpoints of alias"):
        train(halted)
    assert contents(halted) == before


def test_a_run_that_died_before_its_first_state_begins_again_by_itself(make_run, monkeypatch):
    run = make_run("checkpoints.resume_every_steps=6")
    die_at(monkeypatch, run, 5)
    assert (recorded(run, "weights"), recorded(run, "state")) == ([0, 2, 4], [])
    assert train(run) == []
    assert recorded(run, "weights") == [0, 2, 4, 8, 12]


def die_at(monkeypatch: pytest.MonkeyPatch, run: Run, step: int) -> None:
    """One attempt, which ends without a state before a step is made."""
    advance = Loop.advance

    def advance_or_die(self: Loop) -> tuple[float, float]:
        if self.step == step:
            raise InterruptedError
        return advance(self)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(Loop, "advance", advance_or_die)
        train(run)


def give_other_bits(patch: pytest.MonkeyPatch) -> None:
    """Change the weights a little in each step, as a kernel without the promise does."""
    advance = Loop.advance

    def advance_otherwise(self: Loop) -> tuple[float, float]:
        with torch.no_grad():
            self.engine.module.transformer.wpe.weight.data.mul_(1 + 1e-6)
        return advance(self)

    patch.setattr(Loop, "advance", advance_otherwise)


# --- a record of weights that is gone ----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(2,), (4,), (0, 2), (0, 2, 4)])
def test_weights_that_lost_their_record_are_told_first_and_recorded_again(halted, make_run, steps):
    records = {step: halted.manifest.get("train", (KEY, "weights", step_name(step)), "") for step in steps}
    for step in steps:
        halted.manifest.remove("train", (KEY, "weights", step_name(step)))
    before = contents(halted)
    proved = ", ".join(map(str, steps))
    with pytest.raises(
        CheckpointError, match=rf"no record of the weights of step {proved}(.|\n)*nothing was changed"
    ) as told:
        train(halted)
    assert contents(halted) == before
    if len(steps) < 3:
        assert f"record step {proved} again: mistral-pipeline restore" in str(told.value)
        assert restore(halted.experiment, halted.manifest.workspace, []).restored == tuple(
            f"{KEY}/{step_name(step)}" for step in steps
        )
        for step, record in records.items():
            again = halted.manifest.get("train", (KEY, "weights", step_name(step)), "")
            assert again.content == record.content
            assert again.facts["probe"]["loss"] == pytest.approx(record.facts["probe"]["loss"], rel=1e-5)
            for fact in ("step", "tokens", "updates", "logging_steps"):
                assert again.facts[fact] == record.facts[fact]
            assert again.facts["newest_state"] is not None, "so that the run never begins again by itself"
        train(halted)
        assert verify(halted.manifest.workspace, Silent()).problems == []
        require_undisturbed(halted, make_run)


def test_a_complete_run_that_lost_a_record_is_not_complete_and_export_says_so(halted):
    train(halted)
    experiment, manifest = halted.experiment, halted.manifest
    assert is_complete(experiment, "alias", manifest)
    for step in (4, 12):
        manifest.remove("train", (KEY, "weights", step_name(step)))
    assert not is_complete(experiment, "alias", manifest)
    with pytest.raises(CheckpointError, match=r"no record of the weights of step 4, 12(.|\n)*restore .*--seed alias"):
        train(halted)
    with pytest.raises(Findings, match=r"checkpoint-4: found no record of its weights, though the run has passed it"):
        export(experiment, manifest.workspace, Silent(), seeds=["alias"])
    assert len(restore(experiment, manifest.workspace, ["alias"]).restored) == 2
    assert is_complete(experiment, "alias", manifest)


def test_weights_that_are_lost_are_made_again_from_an_earlier_state_only_when_asked(make_run, monkeypatch):
    run = make_run("checkpoints.keep_resumable=9")
    stopped(run, 7)
    run.manifest.remove("train", (KEY, "weights", step_name(4)))
    flip_a_bit(run.manifest.workspace.weights(KEY, 4) / "model.safetensors")
    before = contents(run)
    with pytest.raises(CheckpointError, match=r"from the state of step 3: .* --from-earlier-state") as told:
        train(run)
    assert "restore these records and folders from a copy" in str(told.value)
    assert "again: mistral-pipeline restore" not in str(told.value)
    assert restore(run.experiment, run.manifest.workspace, []).unproven == (f"{KEY}/{step_name(4)}",)
    assert contents(run) == before
    said = go(run, from_earlier_state=True)
    assert said[-1] == f"{KEY}: going on from step 3"
    origins = [one.origin.rpartition(KEY)[2] for one in look(run.manifest.workspace, KEY)]
    assert sorted(origins) == [
        "/checkpoints/step-00000004",
        "/metrics.jsonl",
        "/state/step-00000006",
        "/state/step-00000007",
    ]
    require_undisturbed(run, make_run)


# --- links -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", ["runs", f"runs/{KEY}", "data"])
def test_a_run_whose_folder_was_moved_to_another_disk_goes_on_there(halted, make_run, tmp_path, moved):
    folder = halted.manifest.workspace.root / moved
    shutil.move(folder, tmp_path / "disk")
    folder.symlink_to(tmp_path / "disk")
    flip_a_bit(halted.manifest.workspace.state(KEY, 7) / "state.json")
    assert train(halted)[-1] == f"{KEY}: going on from step 6"
    export(halted.experiment, halted.manifest.workspace, Silent(), seeds=["alias"])
    assert verify(halted.manifest.workspace, Silent()).problems == []
    assert folder.is_symlink()
    require_undisturbed(halted, make_run)


LINKED = ["state", "checkpoints", "checkpoints/step-00000008", "state/step-00000007"]


@pytest.mark.parametrize("linked", [*LINKED, "checkpoints/step-00000004/model.safetensors"])
def test_any_other_link_is_refused_before_anything_is_touched(halted, tmp_path, linked):
    folder = halted.manifest.workspace.run(KEY) / linked
    (shutil.move(folder, tmp_path / "disk") if folder.exists() else (tmp_path / "disk").mkdir())
    if (tmp_path / "disk").is_dir():
        (tmp_path / "disk" / "step-00000099").mkdir()
    folder.symlink_to(tmp_path / "disk")
    before, beyond = contents(halted), sorted((tmp_path / "disk").rglob("*"))
    with pytest.raises(PathError, match=rf"{folder}: found a link, expected a file or folder of the workspace itself"):
        train(halted)
    assert contents(halted) == before
    assert sorted((tmp_path / "disk").rglob("*")) == beyond


@pytest.mark.parametrize("linked", ["exports/alias-tiny-x21", "exports/alias-tiny-x21/checkpoint-0"])
def test_export_writes_through_no_other_link(halted, tmp_path, linked):
    link = halted.manifest.workspace.root / linked
    link.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "disk").mkdir()
    link.symlink_to(tmp_path / "disk")
    with pytest.raises(PathError, match=f"{link}: found a link"):
        export(halted.experiment, halted.manifest.workspace, Silent(), seeds=["alias"])
    assert list((tmp_path / "disk").iterdir()) == []


@pytest.mark.parametrize("linked", ["", "train", "tokenizer"])
def test_preprocess_writes_through_no_other_link(tiny, tmp_path, linked):
    experiment, workspace = load_experiment(str(tiny / "tiny.yaml")), Workspace(tmp_path / "fresh")
    link = workspace.dataset(experiment.data.dataset_name()) / linked
    link.parent.mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    link.symlink_to(tmp_path / "disk")
    with pytest.raises(PathError, match=f"{link}: found a link"):
        preprocess(experiment, workspace, Silent())
    assert list((tmp_path / "disk").iterdir()) == []


# --- training that need not give the same bits --------------------------------------------------------------------


def test_a_run_that_is_not_deterministic_goes_on_from_its_state_and_says_so(make_run, monkeypatch):
    run = make_run("training.deterministic=false")
    die_at(monkeypatch, run, 8)
    assert (recorded(run, "weights"), recorded(run, "state")) == ([0, 2, 4, 8], [3, 6])
    export(run.experiment, run.manifest.workspace, Silent(), seeds=["alias"])
    give_other_bits(monkeypatch)
    train(run)
    monkeypatch.undo()
    workspace = run.manifest.workspace
    assert {one.origin for one in look(workspace, KEY)} == {
        f"runs/{KEY}/checkpoints/step-00000008", f"exports/{KEY}/checkpoint-8"
    }  # fmt: skip
    export(run.experiment, workspace, Silent(), seeds=["alias"])
    report = verify(workspace, Silent())
    assert report.problems == []
    assert report.promises == {KEY: "same batches"}
    assert "same batches" in (workspace.export(KEY, 8) / "README.md").read_text()
    assert run.manifest.get("train", (KEY, "complete"), "").facts["promise"] == "same batches"


def test_a_deterministic_run_that_gives_other_bits_is_still_refused(make_run, monkeypatch):
    run = make_run()
    die_at(monkeypatch, run, 8)
    path = run.manifest.path("train", (KEY, "state", step_name(6)))
    assert path.exists()
    give_other_bits(monkeypatch)
    before = {name: value for name, value in contents(run).items() if name.endswith("safetensors")}
    with pytest.raises(Exception, match="gave another result"):
        train(run)
    after = contents(run)
    assert {name: after.get(name) for name in before} == before
