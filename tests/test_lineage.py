"""What somebody puts, edits or takes away in a workspace shows in what the other records say of it."""

import ast
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from recorded import STEPS, Trained

from mistral.cohort import begin, begin_facts, publish_begin
from mistral.config import load_experiment
from mistral.drift import record_drift
from mistral.errors import ConfigError
from mistral.files import canonical_json, digest_of
from mistral.kinds import KINDS, kind_of
from mistral.manifest import FileEntry, Manifest, Record, make_record
from mistral.progress import Silent
from mistral.workspace import Workspace, step_name
from pipeline.export import export
from pipeline.train import is_complete
from pipeline.verify import VerifyReport, check_files, verify


def check(trained: Trained, **options) -> VerifyReport:
    return verify(trained.workspace, Silent(), **options)


def problems(trained: Trained, **options) -> str:
    return "\n".join(check(trained, **options).problems)


def record(trained: Trained, *key: str, stage: str = "train") -> Record:
    return trained.manifest.get(stage, key, "")


def forge(trained: Trained, old: Record, made_by: dict | None = None, **changes) -> Record:
    """Replace a record by one with other content and digests that fit, as somebody who knows the format would."""
    parts = {"config": old.config, "inputs": old.inputs, "files": old.files, "facts": old.facts} | changes
    draft = dataclasses.replace(make_record(old.kind, old.key, **parts), made_by=made_by or old.made_by)
    body = {name: value for name, value in draft.body().items() if name != "digest"}
    path = trained.manifest.path(old.kind.partition("/")[0], old.key)
    path.write_bytes(canonical_json({**body, "digest": digest_of(body)}))
    return trained.manifest.get(old.kind.partition("/")[0], old.key, "")


def files_in(trained: Trained, folder) -> list[FileEntry]:
    return [trained.manifest.entry(path) for path in sorted(folder.iterdir())]


def put_weights_of(trained: Trained, other: str, run: str, step: int, **changes) -> Record:
    """Weights of another run in a run's folder, with a record that fits them and its place."""
    source, target = trained.workspace.weights(other, step), trained.workspace.weights(run, step)
    shutil.rmtree(target)
    shutil.copytree(source, target)
    old = record(trained, run, "weights", step_name(step))
    return forge(trained, old, files=files_in(trained, target), **changes)


def forget(trained: Trained, run: str) -> None:
    for folder in (trained.workspace.run(run), trained.workspace.manifest() / "train" / run):
        shutil.rmtree(folder)


def kind_at(stage: str, *key: str) -> str | None:
    kind = kind_of(stage, key)
    return kind and kind.name


def test_kinds_follow_from_places():
    assert kind_at("preprocess", "plays", "00000") == "preprocess/unit"
    assert kind_at("preprocess", "plays", "dataset") == "preprocess/dataset"
    assert kind_at("preprocess", "plays", "hashes-00000") == "preprocess/hashes"
    assert kind_at("preprocess", "plays", "duplicates") == "preprocess/duplicates"
    assert kind_at("train", "a", "weights", "step-00000010") == "train/weights"
    assert kind_at("train", "a", "begin") == "train/begin"
    assert kind_at("train", "a", "drift", "step-00000010-0123abcd") == "train/drift"
    assert kind_at("export", "a", "checkpoint-10") == "export/checkpoint"
    for stage, *key in [
        ("train", "a", "weights", "step-010"), ("train", "a", "notes"), ("train", "a"), ("export", "a", "best"),
        ("export", "a", "checkpoint-010"), ("other", "a", "begin"), ("preprocess", "plays", "a", "b"),
        ("preprocess", "plays", "notes"), ("preprocess", "plays", "hashes-a"),
    ]:  # fmt: skip
        assert kind_at(stage, *key) is None


def test_the_documented_records_are_those_of_the_table():
    text = (Path(__file__).parent.parent / "docs/formats.md").read_text()
    documented = re.findall(r"^\| `(\S+)\.json` \| `(\S+)` \|", text, re.MULTILINE)
    assert sorted(documented) == sorted((f"{kind.stage}/{kind.place}", kind.name) for kind in KINDS)


def kinds_written(tree: ast.AST) -> Iterator[str]:
    """The first argument of each call of make_record; of one that is no plain text, where it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "make_record":
            yield node.args[0].value if isinstance(node.args[0], ast.Constant) else ast.unparse(node.args[0])


def test_the_table_holds_all_kinds_that_the_code_writes_and_no_others():
    root = Path(__file__).parent.parent
    paths = [path for package in ("mistral", "pipeline", "slurm") for path in (root / package).glob("*.py")]
    written = {kind for path in paths for kind in kinds_written(ast.parse(path.read_text()))}
    checkpoints = {f"train/{kind}" for kind in ("weights", "state")}  # whose kind checkpoints.py puts together
    assert written - {"kind"} | checkpoints == {kind.name for kind in KINDS}


def test_a_record_that_is_not_in_the_table_cannot_be_published(manifest):
    """So whatever is written is known to verify and documented."""
    for kind, key in [("train/notes", ("a", "notes")), ("train/state", ("a", "weights", step_name(1)))]:
        with pytest.raises(ValueError, match=r"found a record train/.*, expected one of the table"):
            manifest.publish(make_record(kind, key, config="", inputs={}, files=[], facts={}))
    assert not manifest.workspace.manifest().exists()


@pytest.mark.parametrize(
    "place", ["train/{run}/notes.json", "train/{run}/weights/readme.txt", "audit/x.json", "x.json"]
)
def test_what_is_no_record_of_the_layout_is_told_as_such(trained, place):
    run = trained.train("alias", [0])
    path = trained.workspace.manifest() / place.format(run=run)
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    expected = [f"{path}: found a file that is not a record of this layout, expected none; move it elsewhere"]
    assert check(trained, quick=True).problems == expected
    assert check(trained, quick=True, experiment=trained.experiment).problems == expected


def test_a_record_that_is_being_written_is_no_problem(trained):
    run = trained.train("alias", [0])
    (trained.workspace.manifest() / "train" / run / ".complete.json.7.0a1b.tmp").write_text("{")
    assert problems(trained) == ""


def test_a_record_of_another_kind_than_its_place_is_found(trained):
    run = trained.train("alias", [0])
    old = record(trained, run, "begin")
    forge(trained, dataclasses.replace(old, kind="train/complete"))
    assert "found a record of train/complete, expected one of train/begin" in problems(trained, quick=True)


# --- a checkpoint of another seed -------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_a_checkpoint_of_another_seed_under_a_record_that_fits_breaks_the_next_link(trained, step):
    alias, battlestar = trained.train("alias"), trained.train("battlestar")
    put_weights_of(
        trained, battlestar, alias, step, facts=record(trained, battlestar, "weights", step_name(step)).facts
    )
    told = problems(trained, quick=True)
    following = {
        0: "weights/step-00000002: its parent",
        2: "weights/step-00000004: its parent",
        4: "complete: its weights",
    }
    assert f"{alias}/{following[step]} is" in told
    assert (f"{battlestar}/checkpoints/{step_name(step)}/model.safetensors: holds the same weights" in told) == (
        step > 0
    )


def test_other_weights_at_the_end_of_a_chain_are_found_by_their_loss(trained):
    """Nothing follows the newest weights of an unfinished run, and the other run is gone."""
    alias, battlestar = trained.train("alias", [0, 2]), trained.train("battlestar", [0, 2])
    trained.manifest.remove("train", (alias, "state", step_name(2)))
    shutil.rmtree(trained.workspace.state(alias, 2))
    put_weights_of(trained, battlestar, alias, 2)
    forget(trained, battlestar)
    assert check(trained, quick=True).problems == []
    [problem] = check(trained).problems
    assert f"train/weights {alias}/weights/step-00000002: found probe loss" in problem


def test_initial_weights_that_are_not_those_of_the_seed_are_found(trained):
    alias, battlestar = trained.train("alias", [0]), trained.train("battlestar", [0])
    facts = record(trained, battlestar, "weights", step_name(0)).facts
    forged = put_weights_of(trained, battlestar, alias, 0, facts=facts)
    state = record(trained, alias, "state", step_name(0))
    forge(trained, state, inputs=state.inputs | {"weights": forged.content})
    forget(trained, battlestar)
    assert check(trained, quick=True).problems == []
    told = problems(trained)
    assert f"{alias}/weights/step-00000000: found other weights than the run's seed gives" in told
    assert f"{alias}/state/step-00000000: found other parameters than in" in told


def test_a_state_of_another_seed_is_found(trained):
    alias, battlestar = trained.train("alias", [0, 2]), trained.train("battlestar", [0, 2])
    shutil.rmtree(trained.workspace.state(alias, 2))
    shutil.copytree(trained.workspace.state(battlestar, 2), trained.workspace.state(alias, 2))
    old = record(trained, alias, "state", step_name(2))
    forge(trained, old, files=files_in(trained, trained.workspace.state(alias, 2)))
    told = problems(trained)
    assert f"{alias}/state/step-00000002: found other parameters than in" in told
    assert "state.safetensors: holds the same weights as" in told


def test_weights_that_are_no_tensors_are_a_problem_and_no_crash(trained):
    run = trained.train("alias", [0])
    (trained.workspace.weights(run, 0) / "model.safetensors").write_bytes(b"no tensors")
    old = record(trained, run, "weights", step_name(0))
    forge(trained, old, files=files_in(trained, trained.workspace.weights(run, 0)))
    assert f"train/weights {run}/weights/step-00000000: " in problems(trained)


def test_a_state_that_training_withdraws_meanwhile_is_no_problem(trained, monkeypatch):
    run = trained.train("alias", [0, 2])
    key = (run, "state", step_name(2))

    def withdraw(*arguments):
        trained.manifest.remove("train", key)
        shutil.rmtree(trained.workspace.state(run, 2), ignore_errors=True)
        return check_files(*arguments)

    monkeypatch.setattr("pipeline.verify.check_files", withdraw)
    assert check(trained).problems == []


# --- edited records ---------------------------------------------------------------------------------------------


def edited(facts: dict, *path: str, value) -> dict:
    name, *rest = path
    return {**facts, name: edited(facts[name], *rest, value=value) if rest else value}


@pytest.mark.parametrize(
    ("key", "path", "value", "expected"),
    [
        (("begin",), ("frozen", "training", "learning_rate"), 0.5, "another digest than its config"),
        (("begin",), ("cohort", "config", "training", "learning_rate"), 0.5, "another config for the cohort"),
        (("begin",), ("seed",), "battlestar", "found the run battlestar-tiny-x21, expected alias-tiny-x21"),
        (("begin",), ("cohort",), {}, "found facts that are not those of a train/begin"),
        (("begin",), ("cohort", "software", "torch"), "1.0", "not declared: software.torch: was '1.0'"),
        (("weights", "step-00000002"), ("step",), 4, "found the facts of step 4, expected those of step 2"),
        (("weights", "step-00000002"), ("tokens",), 1, "found 1 tokens, expected 128"),
        (("weights", "step-00000002"), ("updates",), 1, "found 1 updates of the optimizer at step 2, expected as many"),
        (("weights", "step-00000002"), ("updates",), 3, "found 3 updates of the optimizer at step 2, expected as many"),
        (("weights", "step-00000002"), ("probe", "sequences"), [[1]], "found another probe batch"),
        (("weights", "step-00000004"), ("probe", "loss"), 1.0, "found probe loss"),
        (("weights", "step-00000002"), ("probe",), None, "not those of a train/weights"),
        (("complete",), ("promise",), "close numbers", "found the promise 'close numbers', expected 'same bits'"),
        (("complete",), ("steps",), 3, "found 3 steps, expected 4"),
    ],
)  # fmt: skip
def test_an_edited_fact_contradicts_another(trained, key, path, value, expected):
    run = trained.train("alias")
    old = record(trained, run, *key)
    forge(trained, old, facts=edited(old.facts, *path, value=value))
    told = problems(trained)
    assert expected in told
    assert check(trained).promises.get(run) in (None, "nothing until its problems are mended")


def test_an_export_that_holds_other_files_than_its_checkpoint_is_found(trained):
    run = trained.train("alias")
    trained.export(steps=[2])
    folder, old = trained.workspace.export(run, 2), record(trained, run, "checkpoint-2", stage="export")
    (folder / "model.safetensors").unlink()  # the checkpoint's own file, under a second name
    (folder / "model.safetensors").write_bytes(b"other tensors")
    (folder / "tokenizer.json").write_text("{}")
    forge(trained, old, files=files_in(trained, folder))
    told = check(trained).problems
    assert len(told) == 2
    assert all(
        f"export/checkpoint {run}/checkpoint-2: its {name} is" in "\n".join(told)
        for name in ("model.safetensors", "tokenizer.json")
    )


def test_a_file_that_no_record_names_is_found_beside_a_model(trained):
    run = trained.train("alias")
    trained.export(steps=[2])
    path = trained.workspace.export(run, 2) / "pytorch_model.bin"
    path.write_bytes(b"a pickle")
    [problem] = check(trained, quick=True).problems
    assert problem.startswith(f"{trained.workspace.relative(path)}: found a file that no record names")


# --- schedules, siblings, promises ------------------------------------------------------------------------------


def test_steps_that_were_added_to_the_schedule_are_missing(trained, tmp_path):
    run = trained.train("alias")
    longer = load_experiment(str(tmp_path / "tiny.yaml"), ("checkpoints.schedule=[[1, 4]]",))
    assert check(trained, quick=True, experiment=trained.experiment).problems == []
    expected = [f"{run}: complete, but its scheduled step {step} is not recorded" for step in (1, 3)]
    assert check(trained, quick=True, experiment=longer).problems == expected


def test_an_unfinished_run_lacks_only_what_it_has_passed(trained, tmp_path):
    run = trained.train("alias", [0, 2])
    longer = load_experiment(str(tmp_path / "tiny.yaml"), ("checkpoints.schedule=[[1, 4]]",))
    expected = [f"{run}: at step 2, but its scheduled step 1 is not recorded"]
    assert check(trained, quick=True, experiment=longer).problems == expected


def test_two_experiments_whose_runs_would_share_a_name_are_told_apart(trained, tmp_path):
    """Seed a of experiment b-tiny, and seed a-b of experiment tiny: the run a-b-tiny-x21, with one config."""
    text = (tmp_path / "tiny.yaml").read_text()
    paths = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    paths[0].write_text(text.replace("alias: 21, battlestar: 49", "a-b: 21"))
    paths[1].write_text(text.replace("alias: 21, battlestar: 49", "a: 21").replace("name: tiny", "name: b-tiny"))
    first, second = (load_experiment(str(path)) for path in paths)
    run = dataclasses.replace(trained, experiment=first).train("a-b", [0])
    assert run == second.run_name("a")
    assert first.frozen_sections("a-b") == second.frozen_sections("a")
    message = "found the run of seed a-b of experiment tiny, expected that of seed a of experiment b-tiny"
    facts = begin_facts(second, "a", trained.dataset.content, {"threads": 1})
    for attempt in (
        lambda: begin(trained.manifest, run, facts, allow_drift=True),
        lambda: is_complete(second, "a", trained.manifest),
        lambda: export(second, trained.workspace, Silent()),
    ):
        with pytest.raises(ConfigError, match=message):
            attempt()
    assert problems(trained, quick=True, experiment=first) == ""
    [problem] = check(trained, quick=True, experiment=second).problems
    assert "found a run of experiment tiny, expected b-tiny" in problem


def test_seeds_that_differ_in_more_than_the_seed_must_say_so(trained):
    alias, battlestar = trained.train("alias", [0]), trained.train("battlestar", [0])
    begun = record(trained, battlestar, "begin")
    cohort = edited(begun.facts["cohort"], "numerics", value={"threads": 2})
    forge(trained, begun, facts=begun.facts | {"cohort": cohort})
    [problem] = check(trained, quick=True).problems
    assert f"differs from {alias} in more than the seed, not declared: numerics.threads: was 1, is 2" in problem
    forge(trained, begun, facts=begun.facts | {"cohort": cohort, "drift": {alias: ["numerics.threads: was 1, is 2"]}})
    assert problems(trained, quick=True) == ""
    first = record(trained, "tiny", stage="cohort")
    forge(trained, first, facts=first.facts | {"cohort": cohort})
    assert "cohort/first tiny: found another cohort than that of its digest" in problems(trained, quick=True)
    trained.manifest.remove("cohort", first.key)
    assert f"train/begin {alias}/begin: the first run of its cohort is not recorded" in problems(trained, quick=True)


def test_a_sibling_that_was_allowed_to_drift_is_verified(trained):
    """So is one that was killed as it had begun, before it compared itself with the first run of its cohort."""
    alias, battlestar = trained.train("alias", [0]), trained.experiment.run_name("battlestar")
    facts = begin_facts(trained.experiment, "battlestar", trained.dataset.content, {"threads": 2})
    elsewhere = Manifest(Workspace(trained.workspace.root.with_name("alone")))
    trained.manifest.publish(publish_begin(elsewhere, battlestar, facts, allow_drift=False))
    assert problems(trained, quick=True) == ""
    begun = begin(trained.manifest, battlestar, facts, allow_drift=True)
    assert begun.facts["drift"] == {alias: ["numerics.threads: was 1, is 2"]}
    trained.train("battlestar", [0])
    assert problems(trained, quick=True) == ""


@pytest.mark.parametrize(
    ("numerics", "software", "expected"),
    [({"threads": 2}, {}, "same batches"), ({"threads": 1}, {"torch": "9.9"}, "close numbers")],
)
def test_a_run_that_drifted_claims_less_and_one_that_hides_it_is_found(trained, numerics, software, expected):
    run = trained.train("alias", [0, 2])
    assert check(trained, quick=True).promises == {run: "same bits"}
    begun, newest = record(trained, run, "begin"), record(trained, run, "weights", step_name(2))
    facts = begin_facts(trained.experiment, "alias", trained.dataset.content, numerics)
    facts["cohort"]["software"] = facts["cohort"]["software"] | software
    now = {name: facts["cohort"][name] for name in ("software", "numerics")}
    forge(trained, newest, made_by=newest.made_by | now)
    [problem] = check(trained, quick=True).problems
    assert f"train/weights {run}/weights/step-00000002: made with other software or numerics" in problem
    drift = record_drift(trained.manifest, begun, facts, 0, None)
    newest = forge(trained, newest, made_by=newest.made_by | now, inputs=newest.inputs | {"drift": drift.content})
    state = record(trained, run, "state", step_name(2))
    inputs = state.inputs | {"weights": newest.content, "drift": drift.content}
    forge(trained, state, made_by=state.made_by | now, inputs=inputs)
    report = check(trained, quick=True)
    assert (report.problems, report.promises) == ([], {run: expected})
    assert f"{run}: can claim {expected}" in report.as_text()
    assert json.loads(json.dumps(report.to_json()))["promises"] == {run: expected}
    [name] = trained.manifest.names("train", (run, "drift"))
    told = record(trained, run, "drift", name)
    forge(trained, told, facts=told.facts | {"changes": []})
    assert f"{run}/drift/{name}: found other changes than its name" in problems(trained, quick=True)
    trained.manifest.remove("train", told.key)
    assert f"{run}/weights/step-00000002: its drift is {drift.content[:12]}" in problems(trained, quick=True)


# --- metrics ----------------------------------------------------------------------------------------------------


def test_damaged_repeated_and_missing_lines_of_metrics_are_found(trained):
    run = trained.train("alias")
    path = trained.workspace.metrics(run)
    for step in STEPS:
        old = record(trained, run, "weights", step_name(step))
        forge(trained, old, facts=old.facts | {"logging_steps": 1})
    assert problems(trained, quick=True) == ""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[0], "{broken\n", *lines[3:]]))
    told = check(trained, quick=True).problems
    assert len(told) == 3
    assert told[0].startswith(f"{path}, line 2: found a loss of step 1 again")
    assert told[1].startswith(f"{path}, line 3: found something else than a measurement")
    assert told[2].startswith(f"{path}: found no line of 2 steps (2, 3), expected one every 1 steps up to 4")


def test_a_loss_that_was_edited_after_the_end_is_found(trained):
    from mistral.metrics import metrics_digest, read_metrics

    run = trained.train("alias")
    path, old = trained.workspace.metrics(run), record(trained, run, "complete")
    forge(trained, old, facts=old.facts | {"metrics": metrics_digest(read_metrics(path))})
    path.write_text(path.read_text().replace("128.0", "256.0"))  # throughput is no part of the promise
    assert problems(trained, quick=True) == ""
    path.write_text(path.read_text().replace("5.7", "4.7"))
    [problem] = check(trained, quick=True).problems
    assert problem.startswith(f"{path}: found other numbers")
