"""What would be submitted: the tasks that are missing, by their numbers, and the very text that sbatch gets."""

import dataclasses
import os
import pickle
import shutil
import signal
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mistral.config import load_cluster, load_experiment
from mistral.errors import ConfigError
from mistral.kinds import kind_of
from mistral.manifest import make_record
from mistral.progress import Silent
from mistral.workspace import Workspace, step_name
from pipeline.cli import cli
from pipeline.context import Context
from slurm import follow, plans, queue, script, submissions, submit
from slurm.task import Tasks

GOLDEN = Path(__file__).parent / "golden"
RUNS = ("alias-tiny-x21", "battlestar-tiny-x49")


@pytest.fixture
def context(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """The small experiment with its dataset, on the cluster of slurm-a100.yaml; no Slurm is asked."""
    shutil.copytree(packed / "workspace", tmp_path / "workspace")
    monkeypatch.setattr(queue, "ask", lambda *command: None)
    overrides = ("training.global_batch_size=16",)
    loaded, place = load_experiment(str(packed / "tiny.yaml"), overrides), Workspace(tmp_path / "workspace")
    return Context(
        loaded, load_cluster("slurm-a100"), place, Silent(), ("run", "tiny.yaml", "--workspace", "WORKSPACE")
    )


def record(context: Context, *names: str) -> None:
    stage, *key = names
    kind = kind_of(stage, tuple(key)).name
    context.manifest.publish(make_record(kind, tuple(key), config="", inputs={}, files=[], facts={}))


def test_the_text_that_sbatch_gets_is_known_to_the_letter(context, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    shutil.rmtree(context.workspace.root / "manifest")
    planned = plans.make_plans(context, ("preprocess", "train", "export"), plans.Choice())
    text = submit.dry_run(context, planned).replace(str(context.workspace.root), "/scratch/owt")
    assert text == (GOLDEN / "slurm-a100.sbatch.txt").read_text(encoding="utf-8")


def test_a_site_that_forbids_requeue_gets_chains_whose_text_is_known_to_the_letter(context, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    forbids = dataclasses.replace(context, cluster=context.cluster.model_copy(update={"requeue": False}))
    planned = plans.make_plans(forbids, ("train",), plans.Choice())
    text = submit.dry_run(forbids, planned).replace(str(context.workspace.root), "/scratch/owt")
    assert text == (GOLDEN / "chain.sbatch.txt").read_text(encoding="utf-8")
    assert "--no-requeue" in submit.dry_run(forbids, [submit.Plan("export", ((0, "task 0 of 1"),), ())])


def test_a_node_may_start_python_in_another_way(context):
    words = "apptainer exec --nv /shared/mistral.sif python"
    contained = dataclasses.replace(context, cluster=context.cluster.model_copy(update={"python": words}))
    text = submit.dry_run(contained, plans.make_plans(contained, ("train",), plans.Choice()))
    assert f" {words} -u -m submitit.core._submit " in text
    assert f"\n{words} -m pipeline.cli again --workspace " in text
    assert sys.executable not in text


def test_no_more_chains_go_on_at_a_time_than_the_array_is_wide(context, monkeypatch):
    launched = []

    def launch(context, submission, waits, link=0):
        launched.append((submission.tasks[0], link, [wait for wait in waits if wait]))
        return str(len(launched))

    monkeypatch.setattr(submit, "_launch", launch)
    train = context.cluster.stages.train.model_copy(update={"array_width": 2, "chain_jobs": 2})
    stages = context.cluster.stages.model_copy(update={"train": train})
    forbids = dataclasses.replace(
        context, cluster=context.cluster.model_copy(update={"requeue": False, "stages": stages})
    )
    plan = submit.Plan("train", ((0, "a"), (1, "b"), (4, "c")), ())
    doing = submit.Submitting(forbids)
    submit._submit_chains(doing, plan, plan.units, ["90"])
    jobs = doing.jobs
    assert [job.numbers for job in jobs] == [("1", "2"), ("3", "4"), ("5", "6")]
    assert [job.submission.jobs() for job in jobs] == [["1", "2"], ["3", "4"], ["5", "6"]]
    assert launched[:2] == [(0, 0, ["afterok:90", "singleton"]), (0, 1, ["afterok:90", "singleton"])]
    assert launched[4:] == [(4, link, ["afterok:90", "afterany:1:2", "singleton"]) for link in (0, 1)]
    first = jobs[0].submission
    assert list(submissions.recorded(forbids.workspace, "tiny", "train"))[-1] == first
    assert (first.links, first.attempts_of("1")) == (2, first.comment)
    assert {path.name for path in first.folder.glob("*.pkl")} == {"1_submitted.pkl", "2_submitted.pkl"}


def test_seeds_that_are_complete_are_left_out_and_the_others_keep_their_numbers(context):
    assert plans.train_plan(context, plans.Choice()).units == ((0, RUNS[0]), (1, RUNS[1]))
    record(context, "train", RUNS[0], "complete")
    for step in context.experiment.scheduled_steps():
        record(context, "train", RUNS[0], "weights", step_name(step))
    assert plans.train_plan(context, plans.Choice()).units == ((1, RUNS[1]),)
    assert plans.train_plan(context, plans.Choice(seeds=["alias"])).units == ()
    assert plans.train_plan(context, plans.Choice(flags=["--allow-drift"])).flags == ("--allow-drift",)


def test_all_tasks_hash_before_any_packs_where_duplicates_are_to_be_found(context, packed):
    shutil.rmtree(context.workspace.root / "manifest")
    experiment = load_experiment(str(packed / "tiny.yaml"), ("training.global_batch_size=16", "data.deduplicate=exact"))
    context = dataclasses.replace(context, experiment=experiment)
    hashing, packing, _ = plans.make_plans(context, ("preprocess", "train"), plans.Choice())
    assert hashing == packing
    text = submit.dry_run(context, [hashing, packing])
    assert [line for line in text.splitlines() if "--dependency" in line] == ["#SBATCH --dependency=afterok:PREPROCESS"]
    record(context, "preprocess", experiment.data.dataset_name(), "duplicates")
    assert plans.make_plans(context, ("preprocess",), plans.Choice()) == [hashing]


def test_a_sealed_dataset_needs_no_task_and_an_unsealed_one_needs_the_last(context):
    assert plans.preprocess_plan(context, plans.Choice()).units == ()
    [seal] = (context.workspace.root / "manifest" / "preprocess").glob("*/dataset.json")
    seal.unlink()
    assert plans.preprocess_plan(context, plans.Choice(tasks=4)).units == ((3, "task 3 of 4"),)
    assert plans.preprocess_plan(context, plans.Choice(tasks=4)).flags == ("--tasks", "4")


def test_export_leaves_out_tasks_whose_checkpoints_are_exported(context):
    ahead = plans.export_plan(context, plans.Choice(tasks=2), ahead=True)
    assert [number for number, _ in ahead.units] == [0, 1]
    for step in (0, 2, 4, 8, 12):
        record(context, "train", RUNS[0], "weights", f"step-{step:08d}")
        record(context, "export", RUNS[0], f"checkpoint-{step}")
    assert [number for number, _ in plans.export_plan(context, plans.Choice(tasks=2), ahead=True).units] == [1]
    assert plans.export_plan(context, plans.Choice(tasks=2), ahead=False).units == ()
    chosen = plans.export_plan(context, plans.Choice(seeds=["battlestar"], steps=[4], tasks=1), ahead=True)
    assert chosen.flags == ("--tasks", "1", "--seed", "battlestar", "--step", "4")


def test_ranks_that_do_not_divide_the_batch_are_refused_before_anything_is_submitted(context):
    wrong = Context(
        load_experiment(str(context.experiment.path("tiny.yaml"))), context.cluster, context.workspace, Silent()
    )
    with pytest.raises(ConfigError, match="use a multiple of 16"):
        plans.train_plan(wrong, plans.Choice())


def test_the_long_array_of_a_dry_run_shows_its_first_part(context, monkeypatch):
    monkeypatch.setattr(queue, "max_array_size", lambda: 3)
    plan = submit.Plan("export", tuple((n, f"task {n} of 9") for n in range(9)), ())
    assert "#SBATCH --array=0-2%3\n" in submit.dry_run(context, [plan])


def test_a_log_is_followed_as_it_grows(tmp_path):
    path = tmp_path / "log"
    path.write_text("one\n")
    assert list(follow.lines_of(path, keep_on=False)) == ["one"]
    lines = follow.lines_of(path, keep_on=True)
    assert next(lines) == "one"
    with path.open("a") as file:
        file.write("two\n")
    assert next(lines) == "two"


def test_an_index_of_an_array_becomes_the_task_that_was_missing(monkeypatch):
    became = []
    monkeypatch.setattr(os, "execv", lambda program, words: became.append(words[-4:]))
    monkeypatch.setattr(signal, "pthread_sigmask", lambda how, signals: None)
    tasks = pickle.loads(pickle.dumps(Tasks(("preprocess", "--tasks", "9"), (2, 5, 8))))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    tasks()
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")  # a job that is no array has one task
    tasks()
    assert became == [["--tasks", "9", "--task", "5"], ["--tasks", "9", "--task", "2"]]


def test_gpus_may_be_asked_for_by_kind(context):
    by_kind = context.cluster.model_copy(update={"gres": "gpu:a100:8"})
    size = script.size(by_kind.stages.train, by_kind)
    assert size["gres"] == "gpu:a100:8"
    assert "gpus_per_node" not in size
    assert "gres" not in script.size(by_kind.stages.export, by_kind)


def test_a_dry_run_where_nothing_is_submitted_is_a_wrong_command_line(tmp_path):
    result = CliRunner().invoke(cli, ["train", "quickstart", "--workspace", str(tmp_path / "w"), "--dry-run"])
    assert result.exit_code == 2
    assert "expected a --cluster of Slurm" in result.output
    assert not (tmp_path / "w").exists()


def test_tokens_and_the_numbers_of_another_job_stay_out_of_what_sbatch_keeps(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")  # in a job from which another one is submitted
    monkeypatch.setenv("MISTRAL_CHAIN", "000001-aa 0 3")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    with submit.plain_environment():
        assert not {"HF_TOKEN", "SLURM_ARRAY_JOB_ID", "MISTRAL_CHAIN"} & os.environ.keys()
        assert "SLURM_CONF" in os.environ
    assert os.environ["HF_TOKEN"] == "hf_secret"
