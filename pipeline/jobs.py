"""what Slurm says and what jobs left behind, as `status` takes it -> the lines that it prints of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mistral.lease import Owner
from pipeline.local import is_alive

REASON_LENGTH = 200  # of which a line shows so much
SHOWN = 10  # lines of tasks that ended, and of jobs that are held
NOT_VISIBLE = "jobs: not visible, their folder may be read by its owner only"
WORDS = {"pending": "queued"}  # of Slurm's states; the others are told as they are


@dataclass(frozen=True)
class Job:
    """A task that waits or runs in Slurm, in Slurm's words."""

    stage: str
    name: str
    job: str
    state: str
    reason: str
    nodes: str = ""  # where it runs
    release: str = ""  # the command that lets it run, if Slurm holds it


@dataclass(frozen=True)
class Past:
    """What the newest job of a run has come to."""

    job: str
    attempts: int  # that Slurm has started
    code: int | None  # the exit code with which the last one ended, if it could tell
    reason: str  # why it ended; empty if it left none, or works
    state: str = ""  # failed, stopped or unknown, of a job that has ended; empty where only code and reason tell
    told_by: str | None = None  # the job with that reason: an older one if this one was cancelled with nothing done
    log: str | None = None  # of that job
    last_end: str = field(default="", compare=False)  # why the last attempt that has ended did, also while one works


@dataclass(frozen=True)
class EndedTask:
    """A task whose last job has ended and left work undone, or of which that is not known."""

    stage: str
    name: str
    job: str | None
    state: str  # failed, stopped or unknown
    reason: str
    log: str | None


@dataclass(frozen=True)
class Jobs:
    """What Slurm says, and what the jobs of runs left behind."""

    queue: Sequence[Job] | None = ()  # None: Slurm does not answer
    running: frozenset[str] | None = None  # every job of this user that runs; None: not known
    past: Mapping[str, Past] = field(default_factory=dict)  # by run
    planned_units: int | None = None  # of the dataset, when its preprocessing was submitted
    tasks: Sequence[EndedTask] = ()  # that did not end well, besides those of runs
    visible: bool = True  # False: the folder with the jobs may be read by its owner only

    def of(self, run: str) -> Job | None:
        """The job that trains a run, or waits to."""
        jobs = [job for job in self.queue or () if job.stage == "train" and job.name == run]
        return max(jobs, key=lambda job: job.state == "running", default=None)  # of a chain one runs and others wait

    def is_alive(self, owner: Owner) -> bool | None:
        """Whether the owner of a run works, by what Slurm said; None if that cannot be known."""
        if owner.get("kind") != "slurm":
            return is_alive(owner)
        return None if self.running is None else owner.get("job") in self.running


def queue_lines(jobs: Sequence[Job] | None) -> list[str]:
    """How many tasks of each stage wait or run, for people; nothing if there are none."""
    if jobs is None:
        return ["", "jobs: unknown, Slurm does not answer"]
    lines: dict[str, list[str]] = {}
    for (stage, state, reason), number in Counter((job.stage, job.state, waits_for(job)) for job in jobs).items():
        nodes = sorted({job.nodes for job in jobs if (job.stage, job.state) == (stage, state) and job.nodes})
        where = f" on {', '.join(nodes[:SHOWN])}{', ...' if len(nodes) > SHOWN else ''}" if nodes else ""
        why = f" ({reason})" if reason else ""
        lines.setdefault(stage, []).append(f"{number} {WORDS.get(state, state)}{where}{why}")
    counts = [f"{stage} tasks: {', '.join(found)}" for stage, found in lines.items()]
    return ["", *counts, *_release_lines(jobs)] if lines else []


def _release_lines(jobs: Sequence[Job]) -> list[str]:
    """The commands that let jobs run which Slurm holds."""
    held = [job for job in jobs if job.release]
    lines = [f"{job.stage} {job.name} is held ({job.reason}); release it: {job.release}" for job in held[:SHOWN]]
    return lines + ([f"{len(held) - SHOWN} more are held; see --json"] if len(held) > SHOWN else [])


def ended_lines(tasks: Sequence[EndedTask]) -> list[str]:
    """What became of tasks that have ended, for people: those of a stage that did for one reason share a line."""
    groups: dict[tuple[str, str, str], list[EndedTask]] = {}
    for task in tasks:
        groups.setdefault((task.stage, task.state, task.reason), []).append(task)
    lines = []
    for (stage, state, reason), found in groups.items():
        first = found[0]
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        log = f"; log: {first.log}" if first.log else ""
        said = " ".join(reason.split())[:REASON_LENGTH] if reason else "no reason was left"
        lines.append(f"{stage} {first.name}{more}: {state} (job {first.job}): {said}{log}")
    more_lines = [f"{len(lines) - SHOWN} more lines; see --json"] if len(lines) > SHOWN else []
    return ["", *lines[:SHOWN], *more_lines] if lines else []


def waits_for(job: Job) -> str:
    """What a job waits for; empty if it waits for nothing."""
    return job.reason if job.state == "pending" and job.reason != "None" else ""
