"""jobs of an experiment -> what they do now, why they ended, and the end of their logs."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit.core.utils import JobPaths

from mistral.errors import ConfigError, EnvironmentProblem
from mistral.files import read_json
from mistral.progress import Progress
from mistral.workspace import Workspace
from slurm import queue, submissions
from slurm.submissions import Active, Submission

ASK_SECONDS = 10.0
ENDED_AFTER, CONFIRM_SECONDS = 3, 2.0  # answers without a job: one whose node failed is out of the queue for a moment


@dataclass(frozen=True)
class Row:
    """One task that waits or runs."""

    stage: str
    name: str
    job: str
    state: str
    reason: str


def active(workspace: Workspace, experiment: str | None = None, stage: str | None = None) -> list[Active] | None:
    """The tasks that wait or run, by at most one call of squeue; None if Slurm does not answer."""
    recorded = [s for s in submissions.recorded(workspace, experiment) if stage in (None, s.stage)]
    if not recorded:
        return []
    jobs = queue.my_jobs()
    return None if jobs is None else submissions.active(recorded, jobs)


def rows(tasks: Sequence[Active]) -> list[Row]:
    """For a table."""
    return [Row(t.submission.stage, t.name, t.job.label, t.job.state.lower(), t.job.reason) for t in tasks]


def follow(workspace: Workspace, experiment: str, progress: Progress, ask_seconds: float = ASK_SECONDS) -> None:
    """Wait until no job of an experiment waits or runs; tells what changes."""
    told, quiet = "", 0
    while quiet < ENDED_AFTER:
        tasks = active(workspace, experiment)
        counts = Counter((t.submission.stage, t.job.state.lower()) for t in tasks or [])
        text = ", ".join(f"{stage} {number} {state}" for (stage, state), number in counts.items())
        text = "Slurm does not answer" if tasks is None else text or told
        if text != told:
            progress.say(f"{experiment}: {text}")
        told, quiet = text, quiet + 1 if tasks == [] else 0
        time.sleep(CONFIRM_SECONDS if quiet else ask_seconds)


def why_ended(workspace: Workspace, submission: Submission, task: int) -> str:
    """What the last attempt of a task left as its reason; empty if it left none."""
    job = submission.job()
    if job is None or task not in submission.tasks:
        return ""
    name = submission.attempts_of(job, submission.tasks.index(task))
    ends = sorted((workspace.root / "jobs" / "attempts" / name).glob("*.end"))
    return str(read_json(ends[-1])["reason"]) if ends else ""


def log_of(workspace: Workspace, experiment: str, stage: str, name: str | None, rank: int) -> Path:
    """The newest log of a task.

    Raises:
        ConfigError: no job of it was submitted from this workspace.
    """
    for submission in reversed([s for s in submissions.recorded(workspace, experiment) if s.stage == stage]):
        wanted = name or submission.names[0]
        if (jobs := submission.jobs()) and wanted in submission.names:
            labels = [submission.label(job, submission.names.index(wanted)) for job in reversed(jobs)]
            paths: list[Path] = [JobPaths(submission.folder, label, rank).stderr for label in labels]
            if there := [path for path in paths if path.exists()]:
                return there[0]
            raise EnvironmentProblem(f"{paths[-1]}: found no such file yet; the job {labels[-1]} may wait: see status")
    raise ConfigError(
        f"{experiment}: found no job for {stage} {name or ''} in {workspace.root / 'jobs'}, expected one that was "
        "submitted from this workspace; see status"
    )


def lines_of(path: Path, keep_on: bool) -> Iterator[str]:
    """The lines of a log; with `keep_on` also those that are still to come."""
    with path.open(encoding="utf-8", errors="replace") as file:
        while True:
            if line := file.readline():
                yield line.rstrip("\n")
            elif not keep_on:
                return
            else:
                time.sleep(0.5)
