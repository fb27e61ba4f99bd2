"""verify names every file that changed and every record that does not follow from those before it."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
from recorded import STEPS, Trained, flip_a_bit

from mistral.config import load_experiment
from mistral.files import canonical_json, sha256_of
from mistral.manifest import FileEntry, make_record
from mistral.progress import Silent
from mistral.workspace import step_name
from pipeline.verify import VerifyReport, verify


@pytest.fixture
def exported(trained) -> Trained:
    trained.train("alias")
    trained.train("battlestar")
    trained.export()
    return trained


def check(exported: Trained, **options) -> VerifyReport:
    return verify(exported.workspace, Silent(), **options)


def republish(exported: Trained, record) -> None:
    stage = record.kind.partition("/")[0]
    exported.manifest.remove(stage, record.key)
    exported.manifest.publish(record)


def test_a_whole_workspace_has_no_problems_and_is_not_changed(exported):
    before = {path: path.stat().st_mtime_ns for path in exported.workspace.root.rglob("*")}
    report = check(exported)
    assert report.problems == []
    assert "no problems" in report.as_text()
    assert report.records == 2 + 1 + 2 * (1 + 3 + 1 + 1 + 3)
    assert report.files == 1 + 2 + 2 * (3 * 2 + 2 + 3 * 6)
    assert json.loads(json.dumps(report.to_json()))["bytes"] == report.bytes > 0
    assert {path: path.stat().st_mtime_ns for path in exported.workspace.root.rglob("*")} == before


@pytest.mark.parametrize(
    "pattern",
    [
        "data/*/train/*.h5",
        "data/*/tokenizer/tokenizer.json",
        "runs/alias-*/checkpoints/*2/model.safetensors",
        "runs/alias-*/state/*/state.safetensors",
        "exports/alias-*/checkpoint-2/README.md",
    ],
)
def test_a_flipped_bit_is_named(exported, pattern):
    [path] = exported.workspace.root.glob(pattern)
    flip_a_bit(path)
    assert check(exported, quick=True).problems == []
    problems = check(exported).problems
    assert any(line.startswith(exported.workspace.relative(path)) for line in problems)
    assert len(problems) == 1 + (path.name == "model.safetensors")  # its export is a second name of the same file


def test_a_file_that_is_gone_or_shorter_is_named_also_in_haste(exported):
    run = exported.experiment.run_name("alias")
    (exported.workspace.export(run, 2) / "config.json").unlink()
    (exported.workspace.export(run, 4) / "README.md").write_text("short")
    problems = check(exported, quick=True).problems
    assert len(problems) == 2
    assert "checkpoint-2/config.json" in problems[0]
    assert "checkpoint-4/README.md" in problems[1]


def test_a_damaged_record_is_one_problem_and_no_crash(exported):
    run = exported.experiment.run_name("alias")
    path = exported.manifest.path("train", (run, "weights", "step-00000002"))
    flip_a_bit(path)
    problems = check(exported).problems
    assert len(problems) == 1, "what follows from it is not told again"
    assert str(path) in problems[0]
    path.write_bytes(b"[]")
    assert len(check(exported).problems) == 1


@pytest.mark.parametrize("forged_parent", [False, True])
def test_a_checkpoint_of_another_seed_in_the_chain_is_found(exported, forged_parent):
    alias, battlestar = (exported.experiment.run_name(seed) for seed in ("alias", "battlestar"))
    key = (alias, "weights", step_name(2))
    own = exported.manifest.get("train", key, "")
    other = exported.manifest.get("train", (battlestar, *key[1:]), "")
    shutil.rmtree(exported.workspace.weights(alias, 2))
    shutil.copytree(exported.workspace.weights(battlestar, 2), exported.workspace.weights(alias, 2))
    files = [exported.manifest.entry(path) for path in exported.workspace.weights(alias, 2).iterdir()]
    source = own if forged_parent else other
    record = make_record(
        other.kind, key, config=source.config, inputs=source.inputs, files=files, facts=other.facts
    )  # whoever forges the config and the parent as well still breaks the link of the next checkpoint
    republish(exported, record)
    report = check(exported)
    assert any(f"{alias}/weights/step-00000004: its parent" in line for line in report.problems)
    assert any(f"{alias}/checkpoint-2: its weights" in line for line in report.problems)
    assert forged_parent or any(f"{alias}/weights/step-00000002: its parent" in line for line in report.problems)


def test_a_record_of_another_run_is_found(exported):
    alias, battlestar = (exported.experiment.run_name(seed) for seed in ("alias", "battlestar"))
    paths = [exported.manifest.path("train", (run, "weights", step_name(2))) for run in (alias, battlestar)]
    paths[0].write_bytes(paths[1].read_bytes())
    assert str(paths[0]) in check(exported).problems[0]


def test_files_of_another_run_in_a_record_are_found(exported):
    alias, battlestar = (exported.experiment.run_name(seed) for seed in ("alias", "battlestar"))
    own = exported.manifest.get("train", (alias, "weights", step_name(0)), "")
    files = [exported.manifest.entry(path) for path in exported.workspace.weights(battlestar, 0).iterdir()]
    record = make_record(own.kind, own.key, config=own.config, inputs=own.inputs, files=files, facts=own.facts)
    republish(exported, record)
    folder = exported.workspace.relative(exported.workspace.weights(battlestar, 0))
    assert any(line.startswith(f"{folder}/model.safetensors: found in") for line in check(exported).problems)


def test_two_steps_with_the_same_weights_are_found(trained):
    run = trained.train("alias", [0])
    source, target = trained.workspace.weights(run, 0), trained.workspace.weights(run, 2)
    shutil.copytree(source, target)
    first = trained.manifest.get("train", (run, "weights", step_name(0)), "")
    record = make_record(
        first.kind, (run, "weights", step_name(2)), config=first.config,
        inputs={"dataset": trained.dataset.content, "parent": first.content},
        files=[trained.manifest.entry(path) for path in target.iterdir()],
        facts=first.facts | {"step": 2, "tokens": 128},
    )  # fmt: skip
    trained.manifest.publish(record)
    [problem] = check(trained).problems
    assert "step-00000002/model.safetensors: holds the same weights" in problem


def test_a_complete_run_without_a_scheduled_step_is_found(exported):
    run = exported.experiment.run_name("alias")
    exported.manifest.remove("train", (run, "weights", step_name(2)))
    problems = check(exported).problems
    assert f"{run}: complete, but its scheduled step 2 is not recorded" in problems
    assert any(f"{run}/checkpoint-2: made from" in line for line in problems)


def test_a_dataset_that_was_made_again_is_found(exported):
    name = exported.dataset.key[0]
    shard = exported.workspace.shard(name, "train", "00000")
    shard.write_bytes(b"other text")
    unit = make_record(
        "preprocess/unit", (name, "00000"), config="c", inputs={}, files=[exported.manifest.entry(shard)], facts={}
    )
    republish(exported, unit)
    [problem] = check(exported).problems
    assert f"preprocess/dataset {name}/dataset: its 00000" in problem
    seal = make_record(
        "preprocess/dataset", (name, "dataset"), config="c", inputs={"00000": unit.content},
        files=exported.dataset.files, facts=exported.dataset.facts,
    )  # fmt: skip
    republish(exported, seal)
    problems = check(exported).problems
    assert len(problems) == 2
    assert all("its dataset is" in line for line in problems)  # told once for each run, where it began


def test_a_unit_that_the_seal_does_not_name_is_found(exported):
    name = exported.dataset.key[0]
    extra = make_record("preprocess/unit", (name, "00001"), config="c", inputs={}, files=[], facts={})
    exported.manifest.publish(extra)
    [problem] = check(exported).problems
    assert "00001" in problem


def test_a_run_whose_beginning_is_gone_is_found(exported):
    run = exported.experiment.run_name("alias")
    exported.manifest.remove("train", (run, "begin"))
    problems = check(exported).problems
    assert problems
    assert all("the beginning of the run is not recorded" in line for line in problems)


def test_a_record_under_a_strange_name_is_a_problem_and_no_crash(exported):
    run = exported.experiment.run_name("alias")
    for key in [(run, "weights", "last"), (run, "weights")]:
        record = make_record("train/weights", key, config="c", inputs={}, files=[], facts={})
        path = exported.manifest.path("train", key)
        path.write_bytes(canonical_json(record.body()))
        [problem] = check(exported).problems
        assert str(path) in problem
        path.unlink()


def test_a_path_that_leaves_the_workspace_is_a_problem_and_no_crash(exported):
    name, outside = exported.dataset.key[0], exported.workspace.root.parent / "tiny.yaml"
    entry = FileEntry("../tiny.yaml", outside.stat().st_size, sha256_of(outside))
    old = exported.manifest.get("preprocess", (name, "00000"), "")
    record = make_record(old.kind, old.key, config="c", inputs={}, files=[entry], facts={})
    republish(exported, record)
    assert any("'../tiny.yaml'" in line for line in check(exported).problems)


def test_only_what_belongs_to_the_experiment_is_checked(exported, tmp_path):
    flip_a_bit(exported.workspace.weights(exported.experiment.run_name("battlestar"), 0) / "config.json")
    config = str(tmp_path / "tiny.yaml")
    assert check(exported, experiment=load_experiment(config, ("seeds={alias: 21}",))).problems == []
    assert len(check(exported, experiment=exported.experiment).problems) == 1
    other = load_experiment(config, ("name=other", "data.name=other"))
    [problem] = check(exported, experiment=other).problems
    assert "found no record of other" in problem


def test_an_unfinished_run_is_no_problem(trained):
    trained.train("alias", STEPS[:2])
    assert check(trained).problems == []


def test_ctrl_c_ends_verify_at_once_however_large_the_files_are(manifest):
    """64 GB, which are a hole and take no room, are half a minute of hashing."""
    for number in range(8):
        path = manifest.workspace.shard("plays-00000000", "train", f"{number:05d}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(8_000_000_000)
        entry = FileEntry(manifest.workspace.relative(path), 8_000_000_000, "0" * 64)
        key = ("plays-00000000", f"{number:05d}")
        manifest.publish(make_record("preprocess/unit", key, config="c", inputs={}, files=[entry], facts={}))
    command = [sys.executable, "-m", "pipeline.cli", "verify", "--workspace", str(manifest.workspace.root)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr.readline() == "verify: 0 of 64,000 MB\n"
        time.sleep(0.3)  # the first files are being hashed
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert process.wait(timeout=30) == 75
        assert time.monotonic() - start < 4, "one second on a machine that is not loaded"
        told = process.stderr.read()
    assert told.splitlines()[-2:] == ["stopped by Ctrl-C", "  run the same command to go on"]
