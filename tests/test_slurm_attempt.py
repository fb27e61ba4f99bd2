"""Attempts of a task in a Slurm job: counted, bounded, and their reasons kept; who owns a run."""

import contextlib
import json
import os
from pathlib import Path

import pytest

from mistral.errors import ConfigError, EnvironmentProblem, Findings, LostRanks, MistralError, Stopped
from mistral.lease import superseded_by
from mistral.manifest import Manifest, make_record
from mistral.workspace import Workspace
from pipeline import local
from slurm import attempt, queue
from slurm.history import past_of

GOAL = attempt.Goal("train", (("run", "state"),), 2)


@pytest.fixture
def job(monkeypatch, tmp_path):
    """Starts attempts of the job 12_3; gives a function that takes the restart count."""
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in ("RANK", "MISTRAL_CHAIN")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(local, "RECEIVED", [])
    monkeypatch.setattr(queue, "states_of", lambda label: ["RUNNING"])
    monkeypatch.setattr(queue, "is_preempted", lambda label: False)
    requeued = []
    monkeypatch.setattr(queue, "requeue", lambda label: requeued.append(label) or "")

    def start(restart: int) -> list[str]:
        values = {"JOB_ID": "15", "ARRAY_JOB_ID": "12", "ARRAY_TASK_ID": "3", "RESTART_COUNT": str(restart)}
        for name, value in values.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        local.RECEIVED.clear()
        return requeued

    return start


@pytest.fixture
def link(job, monkeypatch):
    """Starts the links of a chain of 3, each a job of its own; gives the names whose waiting jobs were cancelled."""
    cancelled = []
    monkeypatch.setattr(queue, "cancel_waiting", cancelled.append)
    monkeypatch.setattr(queue, "states_of", lambda label: pytest.fail("nobody had to be asked"))

    def start(number: int) -> list[str]:
        requeued = job(0)
        assert requeued == []
        for name in ("ARRAY_JOB_ID", "ARRAY_TASK_ID"):
            monkeypatch.delenv(f"SLURM_{name}")
        monkeypatch.setenv("SLURM_JOB_ID", str(40 + number))
        monkeypatch.setenv("SLURM_JOB_NAME", "mistral-train-000001-aa")
        monkeypatch.setenv("MISTRAL_CHAIN", f"000001-aa {number} 3")
        return cancelled

    return start


def do(workspace: Workspace, error: BaseException | None = None, *signals: str) -> None:
    """One attempt that ends with an error."""
    try:
        with attempt.attempt(workspace, GOAL):
            local.RECEIVED.extend(signals)
            if error:
                raise error
    except type(error) as seen:
        if seen is not error:
            raise


def save_state(workspace: Workspace, step: str) -> None:
    Manifest(workspace).publish(
        make_record("train/state", ("run", "state", step), config="", inputs={}, files=[], facts={})
    )


def test_outside_of_slurm_an_attempt_leaves_nothing(job, tmp_path):
    with attempt.attempt(Workspace(tmp_path), GOAL):
        pass
    assert list(tmp_path.iterdir()) == []
    assert attempt.owner() == local.process_owner()


def test_a_signal_before_the_time_limit_runs_the_task_again(job, tmp_path):
    requeued, workspace = job(0), Workspace(tmp_path)
    do(workspace, Stopped("stopped at step 7"), "SIGUSR2")
    with pytest.raises(Stopped, match=r"12_3: Stopped: stopped at step 7\n  it waits to run again"):
        attempt.again(workspace, 75)
    assert requeued == ["12_3"]


@pytest.mark.parametrize("signals", [["SIGTERM"], ["SIGUSR2", "SIGTERM"], ["SIGINT"]])
def test_a_task_that_was_told_to_leave_is_left(job, tmp_path, signals):
    requeued, workspace = job(0), Workspace(tmp_path)
    do(workspace, Stopped("stopped at step 7"), *signals)
    with pytest.raises(Stopped, match="it is left as it is"):
        attempt.again(workspace, 75)
    assert requeued == []


def test_a_rank_that_lost_one_that_was_killed_runs_the_task_again(job, tmp_path):
    requeued, workspace = job(0), Workspace(tmp_path)
    do(workspace, LostRanks("rank 1 lost the other ranks"))
    with pytest.raises(Stopped, match=r"lost the other ranks\n  it waits to run again"):
        attempt.again(workspace, 137)
    assert requeued == ["12_3"]


def test_a_task_that_gave_way_in_order_runs_again(job, tmp_path, monkeypatch):
    requeued, workspace = job(0), Workspace(tmp_path)
    do(workspace, Stopped("stopped at step 7"), "SIGTERM")
    monkeypatch.setattr(queue, "is_preempted", lambda label: True)
    with pytest.raises(Stopped, match="it waits to run again"):
        attempt.again(workspace, 75)
    assert requeued == ["12_3"]


def test_a_rank_that_died_does_not_count_as_told_to_leave(job, tmp_path):
    """srun sends SIGTERM to the ranks beside it."""
    requeued, workspace = job(0), Workspace(tmp_path)
    do(workspace, RuntimeError("connection closed by peer"), "SIGTERM")
    with pytest.raises(Stopped, match="RuntimeError: connection closed by peer\n  it waits to run again"):
        attempt.again(workspace, 137)
    assert requeued == ["12_3"]


@pytest.mark.parametrize("states", [["CANCELLED"], ["COMPLETING"], ["REQUEUED"], []])
def test_a_job_that_slurm_has_ended_is_left(job, tmp_path, monkeypatch, states):
    requeued, workspace = job(0), Workspace(tmp_path)
    do(workspace)
    monkeypatch.setattr(queue, "states_of", lambda label: states)
    with pytest.raises(Stopped, match="exit code 143\n  it is left as it is"):
        attempt.again(workspace, 143)
    assert requeued == []


@pytest.mark.parametrize(("error", "kind"), [(ConfigError("mend it"), MistralError), (Findings("no number"), Findings)])
def test_what_a_human_must_mend_is_not_run_again(job, tmp_path, error, kind):
    requeued, workspace = job(0), Workspace(tmp_path)
    do(workspace, error)
    with pytest.raises(kind, match=str(error)):
        attempt.again(workspace, error.exit_code)
    assert requeued == []


def test_a_crash_loop_ends_and_one_with_progress_does_not(job, tmp_path):
    workspace = Workspace(tmp_path)
    for restart in range(4):
        job(restart)
        do(workspace, OSError(f"crash {restart}"))
        save_state(workspace, f"step-0000000{restart}")
        with pytest.raises(Stopped, match="it waits to run again"):
            attempt.again(workspace, 1)
    job(4)
    do(workspace, OSError("crash 4"))
    with pytest.raises(Stopped):
        attempt.again(workspace, 1)
    requeued = job(5)
    do(workspace, OSError("crash 5"))
    with pytest.raises(Findings, match=r"found 2 attempts in a row without progress(.|\n)*OSError: crash 5"):
        attempt.again(workspace, 1)
    assert len(requeued) == 5
    past = past_of(workspace, "12_3", "12_3")
    assert (past.attempts, past.code) == (6, Findings.exit_code)
    assert "found 2 attempts in a row without progress" in past.reason


def test_attempts_that_slurm_itself_repeats_are_bounded_too(job, tmp_path):
    """Nodes that die leave no reason behind, and the batch script dies with them."""
    workspace = Workspace(tmp_path)
    for restart in range(2):
        job(restart)
        do(workspace)
    job(2)
    with (
        pytest.raises(Findings, match=r"found 2 attempts in a row without progress(.|\n)*could not say why"),
        attempt.attempt(workspace, GOAL),
    ):
        pytest.fail("the task began")
    with pytest.raises(Findings):
        attempt.again(workspace, 3)


def test_a_task_that_never_began_is_bounded_too(job, tmp_path):
    workspace = Workspace(tmp_path)
    for restart in range(attempt.ATTEMPTS):
        job(restart)
        with pytest.raises(Stopped if restart < attempt.ATTEMPTS - 1 else Findings, match="exit code 127"):
            attempt.again(workspace, 127)


def test_the_files_of_an_old_job_with_the_same_number_do_not_count(job, tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    for restart in range(2):
        job(restart)
        do(workspace)
    folder = tmp_path / "jobs" / "attempts" / "12_3"
    job(0)
    do(workspace)
    assert len(list(folder.iterdir())) == 2
    monkeypatch.setenv("SLURM_STEP_LAUNCHER_PORT", "40001")
    do(workspace)
    assert [path.name for path in folder.iterdir()] == ["0000.begin"]
    assert oct((tmp_path / "jobs").stat().st_mode)[-3:] == "700"


def test_an_attempt_that_ends_well_leaves_no_stop_file(job, tmp_path):
    job(0)
    do(Workspace(tmp_path))
    attempt.again(Workspace(tmp_path), 0)
    assert [path.name for path in Path(tmp_path / "jobs/attempts/12_3").iterdir()] == ["0000.begin"]


def test_only_rank_0_counts_and_any_rank_may_say_why(job, tmp_path, monkeypatch):
    job(0)
    monkeypatch.setenv("RANK", "1")
    do(Workspace(tmp_path), ConfigError("no GPU here"))
    folder = tmp_path / "jobs/attempts/12_3"
    assert [path.name for path in folder.iterdir()] == ["0000.end"]
    assert json.loads((folder / "0000.end").read_bytes())["reason"] == "ConfigError: no GPU here"


def test_a_step_of_another_size_is_refused(job, tmp_path, monkeypatch):
    job(0)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "1")
    with (
        pytest.raises(EnvironmentProblem, match="found 4 tasks of srun, expected 1, the ranks"),
        attempt.attempt(Workspace(tmp_path), GOAL),
    ):
        pytest.fail("the task began")


def test_an_owner_is_a_job_and_a_process(job, monkeypatch):
    job(4)
    owner = attempt.owner()
    assert (owner["kind"], owner["job"], owner["restart"], owner["pid"]) == ("slurm", "12_3", 4, os.getpid())
    monkeypatch.setattr(queue, "may_run", lambda label: pytest.fail("nobody had to be asked"))
    assert attempt.owner_is_alive(owner) is True
    assert attempt.owner_is_alive({**owner, "pid": 2**22 + 1}) is False  # it died, and the job with it
    for answer in (True, False, None):
        monkeypatch.setattr(queue, "may_run", lambda label, answer=answer: answer)
        assert attempt.owner_is_alive({**owner, "host": "elsewhere"}) is answer
        assert attempt.owner_is_alive({**owner, "kind": "local", "host": "elsewhere"}) is None


@pytest.mark.parametrize(("error", "code"), [(Stopped("at step 7"), 75), (OSError("no such node"), 1)])
def test_where_a_job_cannot_be_requeued_the_next_of_its_chain_goes_on(link, tmp_path, error, code):
    workspace = Workspace(tmp_path)
    cancelled = link(0)
    do(workspace, error, "SIGTERM")  # it makes no difference that this one was cancelled
    with pytest.raises(Stopped, match=f"job 40: .*{error}\n  the next job of its chain goes on"):
        attempt.again(workspace, code)
    link(2)  # the one between them was cancelled as it waited, and counts for nothing
    save_state(workspace, "step-00000007")
    do(workspace, error)
    with pytest.raises(Stopped, match="last job of its chain; run the same command"):
        attempt.again(workspace, code)
    assert cancelled == []


def test_the_last_job_of_a_chain_that_slurm_cut_short_says_so(link, tmp_path):
    folder = tmp_path / "jobs" / "train" / "000001-aa"
    folder.mkdir(parents=True)
    told = {"stage": "train", "experiment": "tiny", "tasks": [0], "names": ["run"], "flags": [], "links": 3}
    (folder / "submission.json").write_text(json.dumps(told))
    (folder / "job.json").write_text(json.dumps({"job": "40", "next": ["41"]}))
    link(1)
    do(Workspace(tmp_path), OSError("no such node"))
    with pytest.raises(Stopped, match="last job of its chain; run the same command"):
        attempt.again(Workspace(tmp_path), 1)


def test_attempts_without_progress_are_counted_over_the_jobs_of_a_chain(link, tmp_path):
    workspace = Workspace(tmp_path)
    for number in range(2):
        cancelled = link(number)
        do(workspace, OSError(f"crash {number}"))
        with pytest.raises(Stopped if number == 0 else Findings, match=f"crash {number}"):
            attempt.again(workspace, 1)
    assert cancelled == ["mistral-train-000001-aa"]
    link(2)  # which Slurm could not be kept from starting
    with pytest.raises(Findings, match="found 2 attempts in a row"), attempt.attempt(workspace, GOAL):
        pytest.fail("the task began")
    names = sorted(path.name for path in (tmp_path / "jobs/attempts/000001-aa").iterdir())
    assert names == ["0000.begin", "0000.end", "0001.begin", "0001.end", "0002.end"]


@pytest.mark.parametrize("error", [None, ConfigError("mend it"), Findings("no number")])
def test_a_chain_ends_when_nothing_is_left_that_a_machine_can_do(link, tmp_path, error):
    cancelled = link(0)
    do(Workspace(tmp_path), error)
    with contextlib.nullcontext() if error is None else pytest.raises(MistralError, match=str(error)):
        attempt.again(Workspace(tmp_path), 0 if error is None else error.exit_code)
    assert cancelled == ["mistral-train-000001-aa"]


def test_a_later_job_of_a_chain_owns_what_the_former_had(link):
    """Slurm says for minutes of a job whose node died that it may come back; `singleton` says that it has ended."""
    link(0)
    former = attempt.owner()
    link(1)
    assert superseded_by(former, attempt.owner())
    assert not superseded_by(attempt.owner(), former)
    assert not superseded_by({**former, "chain": "000002-bb"}, attempt.owner())
    assert not superseded_by({**former, "chain": None}, {**attempt.owner(), "chain": None})
