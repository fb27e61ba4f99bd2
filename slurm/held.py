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
WAITS = ("PENDING", "COMPLETING")  # a copy of the job may still be ending


def release(tasks: Iterable[Active], progress: Progress, told: set[str] | None = None) -> list[Active]:
    """Release the tasks that Slurm holds, and say so.

    Args:
        tasks: tasks of this workspace, as squeue showed them.
        progress: receives a line for each that is held.
        told: lines that were said before and are not said again; grows.

    Returns:
        the tasks that Slurm holds and that were released too often.
    """
    told, given_up = set() if told is None else told, []
    for task in tasks:
        who = queue.held_by(task.job.reason) if task.job.state in WAITS else None
        if who is None:
            continue
        found = f"{task.submission.stage} {task.name}: job {task.job.label} is held by {who} ({task.job.reason})"
        command = queue.release_line(task.job.label, task.job.reason)
        if who != "Slurm":
            line = f"{found} and is left alone; to let it run: {command}"
        elif number := _count(task):
            objection = queue.release(task.job.label)
            line = f"{found}; released it, {number} of {RELEASES} times"
            line = f"{found}; it cannot be released: {objection}" if objection else line
        else:
            given_up.append(task)
            line = f"{found} and was released {RELEASES} times; find out why (scontrol show job), then: {command}"
        if line not in told:
            progress.say(line)
        told.add(line)
    return given_up


def _count(task: Active) -> int:
    """Count one more release of a task; 0 if there were enough."""
    for number in range(1, RELEASES + 1):
        path = task.submission.folder / f"released-{task.job.label}-{number}"
        if publish_bytes(path, task.job.reason.encode()):
            return number
    return 0
