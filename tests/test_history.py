"""What is told of jobs: the newest of each run, how often it was started, and why it waits or ended."""

import json

import pytest

from mistral.errors import EnvironmentProblem
from mistral.workspace import Workspace
from pipeline.jobs import Past
from slurm import endings, history, queue, submissions
from slurm.follow import log_of
from slurm.history import look, past_of

RUNS = ("alias-tiny-x21", "battlestar-tiny-x49")


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    """Empty, and so is the queue of Slurm."""
    monkeypatch.setattr(queue, "my_jobs", lambda: [])
    monkeypatch.setattr(queue, "accounting", lambda jobs: None)
    return Workspace(tmp_path)


def leave(workspace: Workspace, number: int, job: str | None, *, names=RUNS, stage="train", experiment="tiny") -> str:
    """A submission; returns the comment of its job."""
    folder = workspace.root / "jobs" / stage / f"{number:06d}-3fa9c1d2"
    folder.mkdir(parents=True)
    told = {"stage": stage, "experiment": experiment, "tasks": list(range(len(names))), "names": names, "flags": []}
    (folder / "submission.json").write_text(json.dumps(told | {"planned": 64}))
    if job is not None:
        (folder / "job.json").write_text(json.dumps({"job": job}))
    return folder.name


def attempt(workspace: Workspace, label: str, *names: str, **end) -> None:
    folder = workspace.root / "jobs" / "attempts" / label
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(json.dumps(end))


def test_the_jobs_of_a_chain_are_one_story_told_of_the_one_that_runs(workspace, monkeypatch):
    comment = leave(workspace, 1, "12", names=RUNS[:1])
    told = json.loads((workspace.root / "jobs/train" / comment / "submission.json").read_text())
    (workspace.root / "jobs/train" / comment / "submission.json").write_text(json.dumps(told | {"links": 3}))
    (workspace.root / "jobs/train" / comment / "job.json").write_text(json.dumps({"job": "12", "next": ["13", "14"]}))
    attempt(workspace, comment, "0000.begin", "0000.end", reason="first", code=75)
    attempt(workspace, comment, "0001.begin")
    states = {"14": "PENDING", "13": "RUNNING"}
    monkeypatch.setattr(queue, "my_jobs", lambda: [queue.Job(job, state, "", comment) for job, state in states.items()])
    jobs = look(workspace, "tiny", RUNS[:1])
    assert jobs.past == {RUNS[0]: Past("13", 2, None, "")}
    assert jobs.of(RUNS[0]).job == "13"
    monkeypatch.setattr(queue, "my_jobs", list)
    assert look(workspace, "tiny", RUNS[:1]).past[RUNS[0]].attempts == 2


def test_a_job_that_never_started_has_no_attempts(workspace):
    assert past_of(workspace, "12_0", "12_0") == Past("12_0", 0, None, "")


def test_the_last_attempt_says_why_it_ended(workspace):
    attempt(workspace, "12_0", "0000.begin", "0000.end", reason="first", code=None)
    attempt(workspace, "12_0", "0001.begin", ".0001.end.77.aa.tmp", "rendezvous-12-1", reason="not yet", code=1)
    assert past_of(workspace, "12_0", "12_0") == Past("12_0", 2, None, "")  # it works, or was killed without a word
    attempt(workspace, "12_0", "0001.end", reason="second", code=1)
    assert past_of(workspace, "12_0", "12_0") == Past("12_0", 2, 1, "second")
    attempt(workspace, "12_0", "0002.end", reason="its step ended with exit code 127", code=None)  # it never began
    assert past_of(workspace, "12_0", "12_0").attempts == 3


@pytest.mark.parametrize("damage", [b"", b"{", b"[]"])
def test_a_damaged_stop_file_is_no_crash(workspace, damage):
    attempt(workspace, "12_0", "0000.begin")
    (workspace.root / "jobs/attempts/12_0/0000.end").write_bytes(damage)
    assert past_of(workspace, "12_0", "12_0") == Past("12_0", 1, None, "")


def test_the_newest_job_of_a_run_counts(workspace):
    leave(workspace, 9, "30")
    leave(workspace, 10, "40", names=RUNS[1:])
    leave(workspace, 11, None)  # which died before sbatch answered
    (workspace.root / "jobs" / "train" / "000012-00000000").mkdir()  # or before it wrote down anything
    leave(workspace, 13, "50", experiment="other")
    attempt(workspace, "30_1", "0000.begin", "0000.end", reason="of the former job", code=3)
    attempt(workspace, "40", "0000.begin")
    past = look(workspace, "tiny", RUNS).past
    assert {run: (one.job, one.attempts, one.reason) for run, one in past.items()} == {
        RUNS[0]: ("30_0", 0, endings.NOT_TOLD),
        RUNS[1]: ("40", 1, endings.NOT_TOLD),
    }
    assert look(workspace, None, RUNS).past[RUNS[0]].job == "50_0"


def test_no_more_than_the_newest_submissions_are_read(workspace, monkeypatch):
    for number in range(1, 100):
        leave(workspace, number, str(number), names=RUNS[:1])
    read, former = [], submissions.read
    monkeypatch.setattr(submissions, "read", lambda folder: read.append(folder) or former(folder))
    assert look(workspace, "tiny", RUNS[:1]).past[RUNS[0]].job == "99"
    assert len(read) == 1 + endings.FORMER  # none of them has begun
    attempt(workspace, "99", "0000.begin", "0000.end", reason="ConfigError: no", code=1)
    read.clear()
    assert look(workspace, "tiny", RUNS[:1]).past[RUNS[0]].reason == "ConfigError: no"
    assert len(read) == 1
    read.clear()
    assert RUNS[1] not in look(workspace, "tiny", RUNS).past  # it was never submitted
    assert len(read) == history.LOOK_BACK


def test_what_waits_and_runs_is_told_of_this_experiment_only(workspace, monkeypatch):
    comment = leave(workspace, 1, "12")
    other = leave(workspace, 2, "13", names=("task 0 of 1",), stage="export", experiment="other")
    jobs = [
        queue.Job("12_0", "PENDING", "Dependency", comment),
        queue.Job("12_1", "RUNNING", "None", comment),
        queue.Job("13", "RUNNING", "None", other),
        queue.Job("99", "RUNNING", "None", "of another workspace"),
    ]
    monkeypatch.setattr(queue, "my_jobs", lambda: jobs)
    told = look(workspace, "tiny", RUNS)
    assert [(job.name, job.state, job.reason) for job in told.queue] == [
        (RUNS[0], "pending", "Dependency"),
        (RUNS[1], "running", "None"),
    ]
    assert told.running == {"12_1", "13", "99"}  # jobs of plain scripts own runs too
    assert len(look(workspace, None, RUNS).queue) == 3


def test_logs_of_an_absent_rank_says_which_ranks_there_are(workspace):
    folder = workspace.root / "jobs" / "train" / leave(workspace, 1, "12")
    with pytest.raises(
        EnvironmentProblem, match=r"12_0_7_log.err: found no such file, expected one as soon as job 12_0"
    ):
        log_of(workspace, "tiny", "train", None, 7)
    for rank in range(4):
        (folder / f"12_0_{rank}_log.err").touch()
    (folder / "12_10_7_log.err").touch()
    with pytest.raises(
        EnvironmentProblem, match=r"one of the ranks of job 12_0: 0 to 3\n  give one of them with --rank"
    ):
        log_of(workspace, "tiny", "train", None, 7)
    (folder / "12_0_2_log.err").unlink()
    with pytest.raises(EnvironmentProblem, match=r"of job 12_0: 0, 1, 3\n"):
        log_of(workspace, "tiny", "train", None, 2)
    assert log_of(workspace, "tiny", "train", None, 3) == folder / "12_0_3_log.err"


def test_where_slurm_does_not_answer_nothing_is_known_but_what_was_left(workspace, monkeypatch):
    monkeypatch.setattr(queue, "my_jobs", lambda: None)
    leave(workspace, 1, "12")
    leave(workspace, 1, "11", names=("task 0 of 1",), stage="preprocess")
    told = look(workspace, "tiny", RUNS)
    assert (told.queue, told.running, told.planned_units) == (None, None, 64)
    assert told.past[RUNS[1]].job == "12_1"
