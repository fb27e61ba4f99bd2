"""what is about to be submitted -> a folder that says so beforehand: nothing is submitted twice, even after a crash.

workspace/jobs/<stage>/000007-3fa9c1d2/
  submission.json   before sbatch: experiment, tasks in the order of the array's indices, what each task is called
  experiment.yaml   the resolved configs, which the tasks read: what is edited later changes no job that waits
  cluster.yaml
  job.json          after it: Slurm's number, or several of a chain. Without it a job is found by its comment, this name
  *_submission.sh          what sbatch got
  *_submitted.pkl *_log.out *_log.err   submitit's; the pickles of an array are links to one file
  released-12_3-1          that Slurm held the job 12_3 and it was released, for the first time
"""

import itertools
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mistral.config import to_yaml
from mistral.files import canonical_json, fsync_folder, make_folder, publish_bytes, read_json, write_bytes
from mistral.workspace import Workspace
from pipeline.context import Context
from slurm.queue import Job

PRIVATE = 0o700
STAGES = ("preprocess", "train", "export")


@dataclass(frozen=True)
class Submission:
    """One array, the only job of a stage with one task, or a chain of jobs that do one task."""

    folder: Path
    stage: str
    experiment: str
    tasks: tuple[int, ...]  # the task numbers, by index in the array
    names: tuple[str, ...]  # what each is called: a run, or `task 3 of 8`
    flags: tuple[str, ...]  # of the command line, besides the configs, the workspace and the number
    planned: int | None = None  # units of the stage in all, recorded or not
    links: int = 1  # how many jobs do its task one after another; with more than one there is one task
    after: tuple[str, ...] = ()  # the jobs of the stage before it, for which it waits

    @property
    def arguments(self) -> tuple[str, ...]:
        """The command line of a task, without its number."""
        experiment, cluster = (str(self.folder / name) for name in ("experiment.yaml", "cluster.yaml"))
        workspace = str(self.folder.parents[2])
        return (self.stage, experiment, "--workspace", workspace, "--cluster", cluster, *self.flags)

    @property
    def comment(self) -> str:
        """What the job is found by."""
        return self.folder.name

    def job(self) -> str | None:
        """Slurm's number, of a chain the first, if sbatch was seen to answer."""
        return next(iter(self.jobs()), None)

    def jobs(self) -> list[str]:
        """Slurm's numbers in the order of a chain; empty if sbatch was not seen to answer."""
        try:
            told = read_json(self.folder / "job.json")
        except FileNotFoundError:
            return []
        return [str(told["job"]), *told.get("next", [])]

    def label(self, job: str, index: int) -> str:
        """`12_3`, or `12` of a job that is no array."""
        return f"{job}_{index}" if len(self.tasks) > 1 else job

    def index_of(self, label: str) -> int:
        """The index in the array of the job `12_3`."""
        return int(label.partition("_")[2] or 0)

    def attempts_of(self, label: str) -> str:
        """The folder in jobs/attempts of a job: its own, or that of its chain."""
        return label if self.links == 1 else self.comment

    def record(self, jobs: Sequence[str]) -> None:
        """Write down the numbers that sbatch gave."""
        more = {"next": list(jobs[1:])} if len(jobs) > 1 else {}
        publish_bytes(self.folder / "job.json", canonical_json({"job": jobs[0], **more}))


@dataclass(frozen=True)
class Active:
    """A task that waits or runs in Slurm."""

    submission: Submission
    job: Job

    @property
    def task(self) -> int:
        """Its number in the stage."""
        return self.submission.tasks[self.submission.index_of(self.job.label)]

    @property
    def name(self) -> str:
        """What it works on."""
        return self.submission.names[self.submission.index_of(self.job.label)]


def jobs_folder(workspace: Workspace, stage: str) -> Path:
    """Where a stage's jobs lie, readable by their owner only."""
    folder = workspace.root / "jobs" / stage
    make_folder(folder)
    for path in (folder.parent, folder):
        if path.stat().st_uid == os.geteuid():
            path.chmod(PRIVATE)
    return folder


def create(
    context: Context,
    stage: str,
    units: Sequence[tuple[int, str]],
    flags: Sequence[str],
    *,
    planned: int | None = None,
    after: Sequence[str] = (),
) -> Submission:
    """Write down what is about to be submitted.

    Args:
        context: the configs and the workspace.
        stage: preprocess, train or export.
        units: number and name of each task.
        flags: of the command line of each task.
        planned: units of the stage in all, where that is not told by the config.
        after: the jobs of the stage before it, for which it waits.
    """
    parent = jobs_folder(context.workspace, stage)
    number = max((int(path.name.partition("-")[0]) for path in folders(context.workspace, stage)), default=0) + 1
    folder = parent / f"{number:06d}-{secrets.token_hex(4)}"
    folder.mkdir(mode=PRIVATE)
    fsync_folder(parent)
    tasks, names = zip(*units, strict=True)
    links = context.cluster.jobs_in_chain(stage)
    name, more = context.experiment.name, (planned, links, tuple(after))
    submission = Submission(folder, stage, name, tasks, names, tuple(flags), *more)
    write_bytes(folder / "experiment.yaml", to_yaml(context.experiment).encode())
    write_bytes(folder / "cluster.yaml", to_yaml(context.cluster).encode())
    told = {name: value for name, value in asdict(submission).items() if name != "folder"}
    write_bytes(folder / "submission.json", canonical_json(told))
    return submission


def folders(workspace: Workspace, stage: str) -> list[Path]:
    """The submissions of a stage, newest first; lists one folder and reads no file."""
    try:
        found = [path for path in (workspace.root / "jobs" / stage).iterdir() if path.name[0].isdecimal()]
    except FileNotFoundError:
        return []
    return sorted(found, reverse=True)


def read(folder: Path) -> Submission | None:
    """A submission; None of one that died before it had written down what it submits."""
    try:
        told = read_json(folder / "submission.json")
    except FileNotFoundError:
        return None
    tasks, names, flags = (tuple(told[name]) for name in ("tasks", "names", "flags"))
    more = (told.get("planned"), told.get("links", 1), tuple(told.get("after", ())))
    return Submission(folder, told["stage"], told["experiment"], tasks, names, flags, *more)


def recorded(
    workspace: Workspace, experiment: str | None, stage: str, limit: int | None = None
) -> Iterator[Submission]:
    """Submissions of a stage, newest first; each is read when it is asked for.

    Args:
        workspace: from which they were submitted.
        experiment: whose; of all unless given.
        stage: preprocess, train or export.
        limit: how many of the stage are looked at; all unless given.
    """
    found = map(read, folders(workspace, stage)[:limit])
    return (one for one in found if one is not None and experiment in (None, one.experiment))


def active(workspace: Workspace, experiment: str | None, jobs: Iterable[Job]) -> list[Active]:
    """The tasks that Slurm knows, of one experiment or of all, by submission, the oldest first.

    Reads only the submissions that these belong to. Jobs of other workspaces are left out.
    """
    by_comment: dict[str, list[Job]] = {}
    for job in jobs:
        by_comment.setdefault(job.submission, []).append(job)
    listed = [folder for stage in STAGES for folder in reversed(folders(workspace, stage))]
    known = [folder for folder in listed if folder.name in by_comment]
    found = [one for one in map(read, known) if one is not None and experiment in (None, one.experiment)]
    return [Active(submission, job) for submission in found for job in by_comment[submission.comment]]


def by_submission(tasks: Iterable[Active]) -> Iterator[tuple[Submission, list[Active]]]:
    """Tasks of the same submission together, as `active` lists them."""
    for submission, group in itertools.groupby(tasks, key=lambda task: task.submission):
        yield submission, list(group)
