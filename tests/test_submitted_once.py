"""Tasks in the queue are known by their names, and compared with what a command says now; what is refused is told."""

import json

import pytest
from fake_slurm import FakeSlurm, slurm  # noqa: F401  a fixture

from mistral.manifest import Manifest, make_record
from mistral.workspace import Workspace

# ruff: noqa: F811  pytest's way of asking for a fixture
SEEDS = "seeds: {alias: 21, battlestar: 49}"
ALIAS, BATTLESTAR = "alias-tiny-x21", "battlestar-tiny-x49"
LIMIT = (
    "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates "
    "accounting/QOS policy (job submit limit, user's size and/or time limits)"
)


def record_weights(slurm: FakeSlurm) -> None:
    """What the training of alias has recorded when it is at its end."""
    manifest = Manifest(Workspace(slurm.workspace))
    for step in (0, 2, 4, 8, 12):
        key = (ALIAS, "weights", f"step-{step:08d}")
        manifest.publish(make_record("train/weights", key, config="", inputs={}, files=[], facts={}))


def test_a_seed_put_in_front_of_waiting_ones_is_submitted_once(slurm: FakeSlurm):
    assert slurm.lines("train") == [f"train: submitted job 11 ({ALIAS}, {BATTLESTAR})"]
    slurm.edit(slurm.experiment, SEEDS, "seeds: {caprica: 7, alias: 21, battlestar: 49}")
    found = f"train: found job 11 ({ALIAS}, {BATTLESTAR})"
    assert slurm.lines("train") == [found, "train: submitted job 12 (caprica-tiny-x7)"]
    assert slurm.lines("train") == [found, "train: found job 12 (caprica-tiny-x7)"]


def test_reordered_seeds_are_submitted_once(slurm: FakeSlurm):
    assert slurm.lines("train", "--seed", "battlestar") == [f"train: submitted job 11 ({BATTLESTAR})"]
    slurm.edit(slurm.experiment, SEEDS, "seeds: {battlestar: 49, alias: 21}")
    found = f"train: found job 11 ({BATTLESTAR})"
    assert slurm.lines("train") == [found, f"train: submitted job 12 ({ALIAS})"]
    assert slurm.lines("train") == [found, f"train: found job 12 ({ALIAS})"]


def test_a_seed_put_in_front_of_waiting_chains_is_submitted_once(slurm: FakeSlurm):
    slurm.edit(slurm.cluster, "name: fake", "name: fake\nrequeue: false")
    slurm.edit(slurm.cluster, "array_width: 2}", "array_width: 2, chain_jobs: 2}")
    assert len(slurm.lines("train")) == 2
    slurm.edit(slurm.experiment, SEEDS, "seeds: {caprica: 7, alias: 21, battlestar: 49}")
    assert slurm.lines("train")[-1] == "train: submitted jobs 15 -> 16 (caprica-tiny-x7)"
    assert [line.split()[1] for line in slurm.lines("train")] == ["found"] * 3


def test_cancel_ends_the_job_of_a_seed_that_moved_or_left_or_has_another_number(slurm: FakeSlurm):
    slurm.lines("train")
    slurm.edit(slurm.experiment, SEEDS, "seeds: {caprica: 7, alias: 22}")
    assert "cancelled 1 task: 11_1" in slurm.call("cancel", "--seed", "battlestar").output
    assert "cancelled 1 task: 11_0" in slurm.call("cancel", "--seed", "alias").output
    assert slurm.queue() == []
    assert "expected seeds of tiny: caprica, alias" in slurm.refusal("cancel", "--seed", "battlestar")


def test_a_seed_that_moved_while_others_train_on_this_machine_is_not_taken_for_another(slurm: FakeSlurm):
    """Each seed trains in a process of its own, which reads the experiment again."""
    assert "found the seed alias at this place" in slurm.refusal("train", "--task", "0", "--seed", "battlestar")


def test_tasks_of_export_that_mean_other_checkpoints_follow_those_that_wait(slurm: FakeSlurm):
    first = [f"train: submitted job 12 ({ALIAS}, {BATTLESTAR})", "export: submitted job 13 (task 0 of 2, task 1 of 2)"]
    assert slurm.lines("run")[1:] == first
    slurm.edit(slurm.experiment, SEEDS, "seeds: {caprica: 7, alias: 21, battlestar: 49}")
    assert [line.partition(" (")[0] for line in slurm.lines("run")[1:]] == [
        "train: found job 12", "train: submitted job 14", "export: found job 13", "export: submitted job 15",
    ]  # fmt: skip
    assert slurm.dependency(15) == "afterany:12:14:13"
    assert {line.split()[1] for line in slurm.lines("run")} == {"found"}
    record_weights(slurm)
    other = ("export", "--tasks", "1", "--seed", "alias")
    assert slurm.lines(*other)[-1] == "export: submitted job 16 (task 0 of 1)"
    assert slurm.dependency(16) == "afterany:13:15"
    assert {line.split()[1] for line in slurm.lines(*other)} == {"found"}


def test_export_waits_for_training_that_is_submitted_after_it(slurm: FakeSlurm):
    slurm.lines("run")
    slurm.call("cancel", "--seed", "battlestar")
    lines = slurm.lines("run")
    assert f"train: submitted job 14 ({BATTLESTAR})" in lines
    assert lines[-1] == "export: submitted job 15 (task 0 of 2, task 1 of 2)"
    assert slurm.dependency(15) == "afterany:12:14:13"


def test_export_of_a_seed_waits_for_the_training_of_that_seed_only(slurm: FakeSlurm):
    slurm.lines("train", "--seed", "alias")
    slurm.lines("run", "--seed", "battlestar")
    assert slurm.dependency(14) == "afterany:13"


def test_a_second_pass_that_is_not_in_the_queue_is_submitted(slurm: FakeSlurm):
    slurm.edit(slurm.experiment, "validation_fraction: 0.2", "validation_fraction: 0.2, deduplicate: exact")
    (slurm.folder / "refuse-12").write_text(LIMIT)
    assert "preprocess job 11" in slurm.refusal("preprocess")
    assert [line.split(" (")[0] for line in slurm.lines("preprocess")] == [
        "preprocess: found job 11", "preprocess: submitted job 13",
    ]  # fmt: skip
    assert slurm.dependency(13) == "afterok:11"
    assert {line.split()[1] for line in slurm.lines("preprocess")} == {"found"}


# --- values that changed ----------------------------------------------------------------------------------------

CHANGES = [
    ("train", ("--set", "training.learning_rate=0.1"), None, "training.learning_rate: was 0.01, is 0.1"),
    ("train", ("--set", "training.max_steps=24"), None, "training.max_steps: was 12, is 24"),
    ("train", ("--set", "checkpoints.resume_every_steps=9"), None, "checkpoints.resume_every_steps: was 3, is 9"),
    ("train", ("--set", "data.unit_megabytes=1"), None, "data.unit_megabytes: was 256, is 1"),
    ("train", ("--steal-lease",), None, "--steal-lease: was not given, is given"),
    ("train", (), ("physics", "biology"), "cluster file: account: was physics, is biology"),
    ("train", (), ("ulimit -c 0", "ulimit -c 1"), "cluster file: setup: was ['ulimit -c 0'], is ['ulimit -c 1']"),
    ("train", (), ("{array_width: 2}", "{array_width: 2, minutes: 9}"), "stages.train.minutes: was 1440, is 9"),
    ("preprocess", ("--set", "data.unit_megabytes=1"), None, "data.unit_megabytes: was 256, is 1"),
    ("preprocess", (), ("physics", "biology"), "cluster file: account: was physics, is biology"),
    ("run", ("--set", "export.dtype=bf16"), None, "export.dtype: was fp32, is bf16"),
]


@pytest.mark.parametrize(("command", "options", "edit", "told"), CHANGES)
def test_what_changed_since_a_job_was_submitted_is_refused(slurm: FakeSlurm, command, options, edit, told):
    slurm.lines(command)
    before, kept = slurm.queue(), slurm.cluster.read_text()
    if edit:
        slurm.edit(slurm.cluster, *edit)
    refusal = slurm.refusal(command, *options)
    assert told in refusal
    assert refusal.count(": was ") == 1
    assert "mistral-pipeline cancel " in refusal
    assert slurm.queue() == before
    slurm.cluster.write_text(kept)
    assert {line.split()[1] for line in slurm.lines(command)} == {"found"}  # the old values attach


@pytest.mark.parametrize(
    ("command", "options", "edit"),
    [
        ("train", ("--set", "export.dtype=bf16"), None),
        ("train", ("--set", "seeds.caprica=7"), None),
        ("train", (), ("name: fake", "name: other")),
        ("train", (), ("preprocess: {tasks: 2}", "preprocess: {tasks: 9, minutes: 9}")),
        ("preprocess", ("--set", "training.learning_rate=0.1"), None),
        ("preprocess", ("--set", "evaluation.every_steps=9"), None),
        ("preprocess", ("--set", "data.tokenizer_engine=reference"), None),
    ],
)
def test_what_changes_nothing_for_the_tasks_in_the_queue_is_no_change(slurm: FakeSlurm, command, options, edit):
    slurm.lines(command)
    if edit:
        slurm.edit(slurm.cluster, *edit)
    assert slurm.lines(command, *options)[0].startswith(f"{command}: found job 11")


def test_another_seed_may_go_to_another_partition_but_not_train_something_else(slurm: FakeSlurm):
    slurm.lines("train", "--seed", "alias")
    slurm.edit(slurm.cluster, "account: physics", "account: physics\npartition: long")
    assert "cluster file: partition: was absent, is long" in slurm.refusal("train")
    other = ("--seed", "battlestar")
    assert "was 0.01, is 0.1" in slurm.refusal("train", *other, "--set", "training.learning_rate=0.1")
    assert slurm.lines("train", *other)[-1] == f"train: submitted job 12 ({BATTLESTAR})"


def test_a_task_that_runs_keeps_its_resources_and_what_changed_is_told(slurm: FakeSlurm):
    slurm.lines("train")
    slurm.change(lambda text: text.replace("11_0|PENDING", "11_0|RUNNING"))
    slurm.edit(slurm.cluster, "account: physics", "account: physics\nexclude: node7")
    refusal = slurm.refusal("train")
    assert f"found job 11 ({BATTLESTAR}) in the queue" in refusal
    assert "--seed battlestar" in refusal
    slurm.lines("cancel", "--seed", "battlestar")
    result = slurm.call("train")
    assert "train: job 11 runs on with former values: cluster file: exclude: was absent, is node7" in result.stderr
    assert f"train: submitted job 12 ({BATTLESTAR})" in result.stdout
    assert "was 0.01, is 0.1" in slurm.refusal("train", "--set", "training.learning_rate=0.1")


# --- what Slurm refuses -----------------------------------------------------------------------------------------


def test_a_later_stage_that_is_refused_hides_none_that_went_in(slurm: FakeSlurm):
    (slurm.folder / "refuse-13").write_text(LIMIT)
    result = slurm.call("run", "--seed", "alias")
    assert [line.split(" (")[0] for line in result.stdout.splitlines()[:2]] == [
        "preprocess: submitted job 11", "train: submitted job 12",
    ]  # fmt: skip
    told = str(result.exception)
    assert "QOSMaxSubmitJobPerUserLimit" in told
    assert "left in the queue: preprocess job 11, train job 12\n" in told
    assert "not submitted: export (task 0 of 2, task 1 of 2)" in told
    assert [line.split(" (")[0] for line in slurm.lines("run", "--seed", "alias")] == [
        "preprocess: found job 11", "train: found job 12", "export: submitted job 14",
    ]  # fmt: skip


def test_the_third_part_of_an_array_that_is_refused_hides_none_that_went_in(slurm: FakeSlurm, monkeypatch):
    record_weights(slurm)
    monkeypatch.setenv("MAX_ARRAY_SIZE", "2")
    (slurm.folder / "refuse-13").write_text(LIMIT)
    options = (
        "--tasks",
        "10",
        "--seed",
        "alias",
        "--step",
        "0",
        "--step",
        "2",
        "--step",
        "4",
        "--step",
        "8",
        "--step",
        "12",
    )
    result = slurm.call("export", *options, "--json")
    assert [row["job"] for row in json.loads(result.stdout)] == ["11", "12"]
    assert "not submitted: export (task 9 of 10)" in str(result.exception)
    lines = slurm.lines("export", *options)
    assert lines[-1] == "export: submitted job 14 (task 9 of 10)"
    assert [line.split()[1] for line in lines[:-1]] == ["found", "found"]


def test_a_chain_that_is_refused_hides_none_that_went_in(slurm: FakeSlurm):
    slurm.edit(slurm.cluster, "name: fake", "name: fake\nrequeue: false")
    slurm.edit(slurm.cluster, "array_width: 2}", "array_width: 2, chain_jobs: 2}")
    (slurm.folder / "refuse-14").write_text(LIMIT)
    result = slurm.call("train")
    assert [line.partition(", logs")[0] for line in result.stdout.splitlines()[:2]] == [
        f"train: submitted jobs 11 -> 12 ({ALIAS})", f"train: submitted job 13 ({BATTLESTAR})",
    ]  # fmt: skip
    assert "train job 11 -> 12, train job 13\n" in str(result.exception)
    assert {line.split()[1] for line in slurm.lines("train")} == {"found"}


FAILED = "sbatch: error: Batch job submission failed: "
REFUSALS = [  # what sbatch of Slurm 22.05 says, and what of the advice fits it alone
    (LIMIT, "when some have ended, run the same command again"),
    (LIMIT.replace("QOSMaxSubmitJobPerUserLimit", "AssocMaxSubmitJobLimit"), "when some have ended"),
    (LIMIT.replace("QOSMaxSubmitJobPerUserLimit", "QOSMaxWallDurationPerJobLimit"), "lower `minutes` of stages.train"),
    (LIMIT.replace("QOSMaxSubmitJobPerUserLimit", "QOSMaxCpuPerJobLimit"), "lower what one task of stages.train asks"),
    (f"{FAILED}Invalid job array specification", "MaxArraySize"),
    (f"{FAILED}Invalid account or account/partition combination specified", "set `account`"),
    (f"sbatch: error: invalid partition specified: x\n{FAILED}Invalid partition name specified", "sinfo -s"),
    (f"{FAILED}Invalid qos specification", "set `qos`"),
    (f"{FAILED}Requested time limit is invalid (missing or exceeds some limit)", "lower `minutes` of stages.train"),
    (f"{FAILED}Invalid feature specification", "set `constraint`"),
    ("sbatch: error: Invalid generic resource (gres) specification", "gpus_per_node of stages.train"),
    (f"{FAILED}Invalid node name specified", "set `exclude`"),
    (f"{FAILED}Requested reservation is invalid", "`reservation` in `extra`"),
    (f"{FAILED}More processors requested than permitted", "asks of a node"),
    (f"{FAILED}Unable to contact slurm controller (connect failure)", "Slurm may have taken the job"),
    ("sbatch: unrecognized option '--frobnicate'", "check the values of the cluster file"),
]


@pytest.mark.parametrize(("said", "fits"), REFUSALS)
def test_advice_fits_what_slurm_refuses(slurm: FakeSlurm, said, fits):
    (slurm.folder / "refuse-11").write_text(said)
    refusal = slurm.refusal("train")
    assert said.splitlines()[0].removeprefix("sbatch: error: ") in refusal
    assert fits in refusal
    assert [text for _, text in REFUSALS if text in refusal and text not in fits and fits not in text] == []


@pytest.mark.parametrize("name", ["%j", "a%4tb", "%%", "back\\slash"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_path_that_slurm_would_change_is_refused_before_anything_is_written(slurm: FakeSlurm, name, dry):
    folder = slurm.workspace / name
    assert "--workspace: found" in slurm.refusal("run", "--workspace", str(folder), *dry)
    assert not slurm.workspace.exists()


@pytest.mark.parametrize("name", ["100%", "50%_more", "white space"])
def test_a_path_that_slurm_takes_as_it_stands_is_let_through(slurm: FakeSlurm, name):
    assert slurm.lines("train", "--workspace", str(slurm.workspace / name))


def test_setup_lines_that_bash_cannot_read_are_refused(slurm: FakeSlurm):
    slurm.edit(slurm.cluster, "ulimit -c 0", "if true; then")
    assert "setup of fake: found lines that bash cannot read" in slurm.refusal("train")
