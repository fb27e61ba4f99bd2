"""tasks that wait -> those that Slurm holds are released, a bounded number of times; what a person holds is told.

Slurm holds a job that it could not launch, as where a node came back within seconds and a copy still ran there. How
often a job was released is counted in the folder of its submission, for all commands together.
"""

from collections.abc import Iterable

from mistral.files import publish_bytes
from mistral.progress import Progress
from slurm import queue
from slurm.submissions import Active

RELEASES = 3  # of a job


def release(tasks: Iterable[Active], progress: Progress, told: set[str] | None = None) -> list[Active]:
    """Release the tasks that Slurm holds, and say so; a line for all tasks of a job to which the same happens.

    Args:
        tasks: tasks of this workspace, as squeue showed them.
        progress: receives the lines.
        told: lines that were said before and are not said again; grows.

    Returns:
        the tasks that Slurm holds and that were released too often.
    """
    told = set() if told is None else told
    given_up: list[Active] = []
    groups: dict[tuple[str, str, str], list[Active]] = {}
    for task in tasks:
        who = queue.held_by(task.job.reason)
        if who is None or task.job.state == "RUNNING":
            continue
        outcome = "left alone; to let it run"
        if who == "Slurm":
            number = _count(task)
            outcome = _release(task, number) if number else f"released {RELEASES} times; find out why, then"
            given_up += [] if number else [task]
        job = task.job.label.partition("_")[0]
        groups.setdefault((job, f"is held by {who} ({task.job.reason})", outcome), []).append(task)
    for (job, state, outcome), some in groups.items():
        name, label = (some[0].name, some[0].job.label) if len(some) == 1 else (f"{len(some)} tasks", job)
        advice = "" if outcome.endswith("times") else f": {queue.advice_of(label, some[0].job.reason)}"
        line = f"{some[0].submission.stage} {name}: job {label} {state}; {outcome}{advice}"
        if line not in told:
            progress.say(line)
        told.add(line)
    return given_up


def _release(task: Active, number: int) -> str:
    """Release a task for the nth time; returns what came of it."""
    objection = queue.release(task.job.label)
    return f"it cannot be released ({objection})" if objection else f"released it, {number} of {RELEASES} times"


def _count(task: Active) -> int:
    """Count one more release of a task; 0 if there were enough."""
    for number in range(1, RELEASES + 1):
        path = task.submission.folder / f"released-{task.job.label}-{number}"
        if publish_bytes(path, task.job.reason.encode()):
            return number
    return 0
