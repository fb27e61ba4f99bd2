"""the queue, submissions, attempts -> what `status` tells of jobs: which waits or runs, how often, why the last ended.

Asks Slurm once, whatever the number of jobs. Reads the submissions that are in the queue and the newest ones, and of
each run the folder of its newest job.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mistral.files import read_json
from mistral.workspace import Workspace
from pipeline.status import Job, Jobs, Past
from slurm import queue, submissions
from slurm.submissions import Active

LOOK_BACK = 20  # submissions of a stage, the newest first, in which the newest job of a task is looked for
ATTEMPT = re.compile(r"^(\d{4,})\.(begin|end)$")


def look(workspace: Workspace, experiment: str | None, runs: Collection[str]) -> Jobs:
    """The jobs of an experiment, or of all in the workspace, and what became of the newest job of each run.

    Args:
        workspace: from which they were submitted.
        experiment: whose; of all unless given.
        runs: names of the runs.
    """
    known = queue.my_jobs()
    active = [] if known is None else submissions.active(workspace, experiment, known)
    labels = newest_jobs(workspace, experiment, "train", runs)
    labels |= {task.name: task.job.label for task in active if task.submission.stage == "train"}
    past = {run: past_of(workspace, labels[run]) for run in runs if run in labels}
    planned = _planned_units(workspace, experiment) if experiment else None
    if known is None:
        return Jobs(None, None, past, planned)
    running = frozenset(job.label for job in known if job.state == "RUNNING")
    return Jobs([row(task) for task in active], running, past, planned)


def row(task: Active) -> Job:
    """A task that waits or runs, in Slurm's words."""
    return Job(task.submission.stage, task.name, task.job.label, task.job.state.lower(), task.job.reason)


def newest_jobs(workspace: Workspace, experiment: str | None, stage: str, names: Collection[str]) -> dict[str, str]:
    """The newest job of each task of these names, as Slurm's commands call it; of those that were submitted lately."""
    found: dict[str, str] = {}
    for submission in submissions.recorded(workspace, experiment, stage, LOOK_BACK):
        if (job := submission.job()) is not None:
            for index, name in enumerate(submission.names):
                found.setdefault(name, submission.label(job, index))
        if found.keys() >= set(names):
            break
    return found


def past_of(workspace: Workspace, label: str) -> Past:
    """How often a job was started, and why its last attempt ended; lists one folder and reads at most one file."""
    folder = workspace.root / "jobs" / "attempts" / label
    try:
        files = {path.name: int(match[1]) for path in folder.iterdir() if (match := ATTEMPT.match(path.name))}
    except FileNotFoundError:
        files = {}
    last = max(files.values(), default=-1)
    end = f"{last:04d}.end"
    told = _read(folder / end) if end in files else {}
    return Past(label, last + 1, told.get("code"), told.get("reason", ""))


def _planned_units(workspace: Workspace, experiment: str) -> int | None:
    """How many units the corpus had when its preprocessing was submitted last."""
    newest = next(submissions.recorded(workspace, experiment, "preprocess", LOOK_BACK), None)
    return None if newest is None else newest.planned


def _read(path: Path) -> dict[str, Any]:
    """A stop file; empty if it is damaged."""
    try:
        told = read_json(path)
    except (FileNotFoundError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
