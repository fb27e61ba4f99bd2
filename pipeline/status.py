"""manifest folders, leases, the tails of metrics and the jobs -> how far each run is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mistral.config import Experiment
from mistral.dataset import SEAL
from mistral.errors import ManifestError, Stopped
from mistral.extension import plan_of
from mistral.lease import Owner, describe, holder
from mistral.manifest import Manifest
from mistral.metrics import parse_line, tokens_per_second
from mistral.workspace import Workspace
from pipeline.local import is_alive
from pipeline.numbers import counted
from pipeline.results import as_table

TAIL_BYTES = 8192
REASON_LENGTH = 80  # of which a table shows so much
COLUMNS = (
    "run", "state", "step", "loss", "tokens_per_second", "eta_seconds", "weights", "exported", "attempts", "owner",
    "reason",
)  # fmt: skip
WORDS = {"pending": "queued"}  # of Slurm's states; the others are told as they are


@dataclass(frozen=True)
class Job:
    """A task that waits or runs in Slurm, in Slurm's words."""

    stage: str
    name: str
    job: str
    state: str
    reason: str


@dataclass(frozen=True)
class Past:
    """What the newest job of a run has come to."""

    job: str
    attempts: int  # that Slurm has started
    code: int | None  # the exit code with which the last one ended, if it could tell
    reason: str  # why it ended; empty if it left none, or works


@dataclass(frozen=True)
class Jobs:
    """What Slurm says, and what the jobs of runs left behind."""

    queue: Sequence[Job] | None = ()  # None: Slurm does not answer
    running: frozenset[str] | None = None  # every job of this user that runs; None: not known
    past: Mapping[str, Past] = field(default_factory=dict)  # by run
    planned_units: int | None = None  # of the dataset, when its preprocessing was submitted

    def of(self, run: str) -> Job | None:
        """The job that trains a run, or waits to."""
        jobs = [job for job in self.queue or () if job.stage == "train" and job.name == run]
        return max(jobs, key=lambda job: job.state == "running", default=None)  # of a chain one runs and others wait

    def is_alive(self, owner: Owner) -> bool | None:
        """Whether the owner of a run works, by what Slurm said; None if that cannot be known."""
        if owner.get("kind") != "slurm":
            return is_alive(owner)
        return None if self.running is None else owner.get("job") in self.running


@dataclass(frozen=True)
class RunStatus:
    """How far one run is."""

    run: str
    state: str  # not started, queued, running, stopped, failed, unknown, complete; or Slurm's own word for its job
    step: int
    max_steps: int | None
    loss: float | None
    tokens_per_second: float | None
    eta_seconds: float | None
    weights: int
    scheduled: int | None
    exported: int
    owner: str | None
    job: str | None  # the one that waits or runs, or else the last one
    attempts: int | None  # of that job
    reason: str | None  # why it waits, or why its last attempt ended


@dataclass(frozen=True)
class StatusReport:
    """How far a dataset and its runs are, and what waits or runs."""

    dataset: str | None
    units: int
    planned_units: int | None
    sealed: bool
    runs: list[RunStatus]
    jobs: Sequence[Job] | None

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def as_table(self) -> str:
        """For people."""
        rows = [
            asdict(run)
            | {
                "step": f"{run.step}/{run.max_steps or '?'}",
                "weights": f"{run.weights}/{run.scheduled or '?'}",
                "exported": f"{run.exported}/{run.scheduled or '?'}",
                "reason": run.reason and run.reason.splitlines()[0][:REASON_LENGTH],
            }
            for run in self.runs
        ]
        return "\n".join([*self._dataset_lines(), as_table(rows, COLUMNS), *queue_lines(self.jobs)])

    def _dataset_lines(self) -> list[str]:
        if self.dataset is None:
            return []
        planned = "" if self.sealed or self.planned_units is None else f" of {self.planned_units}"
        units = counted(self.units, "units") if not planned else f"{self.units}{planned} units"
        return [f"{self.dataset}: {units}, {'whole' if self.sealed else 'unfinished'}"]


def queue_lines(jobs: Sequence[Job] | None) -> list[str]:
    """How many tasks of each stage wait or run, for people; nothing if there are none."""
    if jobs is None:
        return ["", "jobs: unknown, Slurm does not answer"]
    lines: dict[str, list[str]] = {}
    for (stage, state, reason), number in Counter((job.stage, job.state, _waits(job)) for job in jobs).items():
        lines.setdefault(stage, []).append(f"{number} {WORDS.get(state, state)}" + (f" ({reason})" if reason else ""))
    return ["", *(f"{stage} tasks: {', '.join(counts)}" for stage, counts in lines.items())] if lines else []


def status(experiment: Experiment | None, workspace: Workspace, jobs: Jobs | None = None) -> StatusReport:
    """How far the runs of an experiment are, or all runs of a workspace.

    Lists folders of the manifest, and reads at most a record and the end of the metrics of each run.

    Args:
        experiment: whose runs; all of the workspace unless given.
        workspace: where they are.
        jobs: what Slurm says.
    """
    manifest, jobs = Manifest(workspace), jobs or Jobs()
    runs = [run_status(manifest, run, experiment, jobs) for run in run_names(experiment, workspace)]
    if experiment is None:
        return StatusReport(None, 0, None, False, runs, jobs.queue)
    dataset = experiment.data.dataset_name()
    names = manifest.names("preprocess", (dataset,))
    units, sealed = sum(map(str.isdecimal, names)), SEAL in names
    return StatusReport(dataset, units, units if sealed else jobs.planned_units, sealed, runs, jobs.queue)


def run_names(experiment: Experiment | None, workspace: Workspace) -> list[str]:
    """The runs of an experiment, or all that have begun in a workspace."""
    if experiment is not None:
        return [experiment.run_name(seed) for seed in experiment.seeds]
    folder = workspace.manifest() / "train"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def run_status(manifest: Manifest, run: str, experiment: Experiment | None, jobs: Jobs) -> RunStatus:
    """How far one run is."""
    records, weights = set(manifest.names("train", (run,))), manifest.names("train", (run, "weights"))
    line = last_step(manifest.workspace.metrics(run))
    max_steps, scheduled = _plan(manifest, run, experiment)
    step, rate, tokens = line.get("step", 0), tokens_per_second(line), line.get("tokens")
    tokens_a_step = tokens / step if step and isinstance(tokens, int) else None
    owner, job, past = holder(manifest.workspace.run(run)), jobs.of(run), jobs.past.get(run)
    state = _state(records, owner, jobs, job, past)
    eta = (max_steps - step) * tokens_a_step / rate if max_steps and tokens_a_step and rate else None
    eta = None if state == "complete" else eta
    return RunStatus(
        run, state, step, max_steps, line.get("loss"), rate, eta, len(weights), scheduled,
        len(manifest.names("export", (run,))), None if owner is None else describe(owner),
        past.job if past else None, past.attempts if past else None, _reason(state, job, past),
    )  # fmt: skip


def _state(records: set[str], owner: Owner | None, jobs: Jobs, job: Job | None, past: Past | None) -> str:
    """What a run does, by the names of its records, the owner of its lease and its job."""
    works = owner is not None and jobs.is_alive(owner)
    if "complete" in records:
        return "complete"
    if works:
        return "running"
    if job is not None:
        return WORDS.get(job.state, job.state)
    if works is None or (past is not None and jobs.queue is None):
        return "unknown"
    if past is not None and past.code not in (None, Stopped.exit_code):
        return "failed"
    return "stopped" if owner is not None or "begin" in records else "not started"


def _reason(state: str, job: Job | None, past: Past | None) -> str | None:
    """Why a run does not go on: what its job waits for, or why the last attempt ended."""
    if state in ("complete", "running", "unknown"):
        return None
    return (_waits(job) if job else past.reason if past else "") or None


def _waits(job: Job) -> str:
    """What a job waits for; empty if it waits for nothing."""
    return job.reason if job.state == "pending" and job.reason != "None" else ""


def _plan(manifest: Manifest, run: str, experiment: Experiment | None) -> tuple[int | None, int | None]:
    """The last step, and how many steps are kept."""
    if experiment is not None:
        return experiment.training.max_steps, len(experiment.scheduled_steps())
    try:
        begun = manifest.find("train", (run, "begin"))
        scheduled = plan_of(manifest, begun).facts["scheduled_steps"] if begun else ()
    except ManifestError:  # verify says what is wrong with it
        scheduled = ()
    return (scheduled[-1], len(scheduled)) if scheduled else (None, None)


def last_step(path: Path) -> dict[str, Any]:
    """The last logged step, from the end of a metrics file; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    for raw in reversed(lines):
        line = parse_line(raw)  # the first line of the tail is cut
        if line is not None and "loss" in line:
            return line
    return {}
