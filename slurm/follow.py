"""jobs of an experiment -> what they do until the last one has ended, and their logs."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from submitit.core.utils import JobPaths

from mistral.errors import ConfigError, EnvironmentProblem, Findings
from mistral.progress import Progress
from mistral.workspace import Workspace
from slurm import held, queue, submissions
from slurm.submissions import Active

ASK_SECONDS = 10.0
ENDED_AFTER, CONFIRM_SECONDS = 3, 2.0  # answers without a job: one whose node failed is out of the queue for a moment


def active(workspace: Workspace, experiment: str | None = None, stage: str | None = None) -> list[Active] | None:
    """The tasks that wait or run, by at most one call of squeue; None if Slurm does not answer."""
    if not any(submissions.folders(workspace, one) for one in submissions.STAGES):
        return []
    jobs = queue.my_jobs()
    if jobs is None:
        return None
    return [task for task in submissions.active(workspace, experiment, jobs) if stage in (None, task.submission.stage)]


def follow(workspace: Workspace, experiment: str, progress: Progress, ask_seconds: float = ASK_SECONDS) -> None:
    """Wait until no job of an experiment waits or runs; tells what changes, and releases what Slurm holds.

    Raises:
        Findings: what is left waits for a job that Slurm holds again and again.
    """
    told, quiet, lines = "", 0, set[str]()
    while quiet < ENDED_AFTER:
        tasks = active(workspace, experiment)
        refuse_to_wait(tasks or [], held.release(tasks or [], progress, lines))
        counts = Counter((t.submission.stage, t.job.state.lower()) for t in tasks or [])
        text = ", ".join(f"{stage} {number} {state}" for (stage, state), number in counts.items())
        text = "Slurm does not answer" if tasks is None else text or told
        if text != told:
            progress.say(f"{experiment}: {text}")
        told, quiet = text, quiet + 1 if tasks == [] else 0
        time.sleep(CONFIRM_SECONDS if quiet else ask_seconds)


def refuse_to_wait(tasks: Sequence[Active], given_up: Sequence[Active]) -> None:
    """End the wait where nothing is left but held jobs that are not released any more, and those that wait for them.

    Raises:
        Findings: names the first of them.
    """
    waits = [task for task in tasks if task.job.reason.startswith("Dependency") or task in given_up]
    if given_up and len(waits) == len(tasks):
        stage, name, job = given_up[0].submission.stage, given_up[0].name, given_up[0].job
        raise Findings(
            f"{stage} {name}: found that Slurm holds job {job.label} ({job.reason}) after {held.RELEASES} releases, "
            f"expected it to run\n  find out why: scontrol show job {job.label}; then "
            f"{queue.release_line(job.label, job.reason)}, and run the same command again"
        )


def log_of(workspace: Workspace, experiment: str, stage: str, name: str | None, rank: int) -> Path:
    """The newest log of a task.

    Raises:
        ConfigError: no job of it was submitted from this workspace.
    """
    for submission in submissions.recorded(workspace, experiment, stage):
        wanted = name or submission.names[0]
        if (jobs := submission.jobs()) and wanted in submission.names:
            labels = [submission.label(job, submission.names.index(wanted)) for job in reversed(jobs)]
            paths: list[Path] = [JobPaths(submission.folder, label, rank).stderr for label in labels]
            if there := [path for path in paths if path.exists()]:
                return there[0]
            raise EnvironmentProblem(f"{paths[-1]}: found no such file yet; the job {labels[-1]} may wait: see status")
    raise ConfigError(
        f"{experiment}: found no job of {name or 'any task'} of {stage} in {workspace.root / 'jobs'}, expected one "
        "that was submitted from this workspace; see status"
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
