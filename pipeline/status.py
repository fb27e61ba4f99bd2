"""manifest folders, leases, the tails of metrics and the jobs -> how far each run is."""

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mistral.config import Experiment
from mistral.dataset import SEAL
from mistral.errors import ManifestError, Stopped
from mistral.extension import plan_of
from mistral.lease import Owner, describe, holder
from mistral.manifest import Manifest
from mistral.metrics import parse_line, seconds_of, tokens_per_second
from mistral.numbers import counted
from mistral.setaside import names_of
from mistral.workspace import Workspace
from pipeline.jobs import NOT_VISIBLE, WORDS, EndedTask, Job, Jobs, Past, ended_lines, queue_lines, waits_for
from pipeline.results import as_table

TAIL_BYTES = 8192
STALE_SECONDS, STALE_TIMES = 60.0, 5.0  # a last step older than the first, and than so many times the usual, is stale
REASON_LENGTH = 80  # of which a table shows so much
COLUMNS = (
    "run", "state", "step", "age", "loss", "tokens_per_second", "eta_seconds", "weights", "exported", "attempts",
    "nodes", "owner", "reason",
)  # fmt: skip


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
    step_age_seconds: float | None = None  # since the last step was logged; None of a complete run
    nodes: str | None = None  # where its job runs
    last_end: str | None = None  # why the last attempt of its job that has ended did, also while the next one works
    log: str | None = None  # of the job that failed
    set_aside: tuple[str, ...] = ()  # paths in the workspace of what was in the way


@dataclass(frozen=True)
class StatusReport:
    """How far a dataset and its runs are, and what waits or runs."""

    dataset: str | None
    units: int
    planned_units: int | None
    sealed: bool
    runs: list[RunStatus]
    jobs: Sequence[Job] | None
    tasks: Sequence[EndedTask] = ()
    jobs_visible: bool = True

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
                "age": None if run.step_age_seconds is None else f"{run.step_age_seconds:.0f} s",
                "reason": _first_line(run),
            }
            for run in self.runs
        ]
        jobs = queue_lines(self.jobs) if self.jobs_visible else ["", NOT_VISIBLE]
        table = as_table(rows, COLUMNS)
        return "\n".join([*self._dataset_lines(), table, *jobs, *ended_lines(self.tasks), *self._set_aside_lines()])

    def _dataset_lines(self) -> list[str]:
        if self.dataset is None:
            return []
        planned = "" if self.sealed or self.planned_units is None else f" of {self.planned_units}"
        units = counted(self.units, "units") if not planned else f"{self.units}{planned} units"
        return [f"{self.dataset}: {units}, {'whole' if self.sealed else 'unfinished'}"]

    def _set_aside_lines(self) -> list[str]:
        """What was set aside, a line for each run."""
        lines = []
        for run in filter(lambda run: run.set_aside, self.runs):
            first, more = run.set_aside[0], len(run.set_aside) - 1
            lines.append(f"{run.run}: set aside {first}" + (f" and {more} more" if more else ""))
        return ["", *lines, "look at what is set aside with: mistral-pipeline clean --dry-run"] if lines else []


def _first_line(run: RunStatus) -> str | None:
    """Why a run does not go on, or why it had to begin again."""
    before = f"before: {run.last_end}" if run.last_end and run.state == "running" else None
    text = run.reason or before
    return text and text.splitlines()[0][:REASON_LENGTH]


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
    bad = [(run, jobs.past[run.run]) for run in runs if run.run in jobs.past and run.state in ("failed", "unknown")]
    tasks = [
        EndedTask("train", run.run, past.told_by or past.job, run.state, past.reason, past.log)
        for run, past in bad
        if jobs.queue is not None
    ]
    tasks += jobs.tasks
    more = (runs, jobs.queue, tasks, jobs.visible)
    if experiment is None:
        return StatusReport(None, 0, None, False, *more)
    dataset = experiment.data.dataset_name()
    names = manifest.names("preprocess", (dataset,))
    units, sealed = sum(map(str.isdecimal, names)), SEAL in names
    return StatusReport(dataset, units, units if sealed else jobs.planned_units, sealed, *more)


def run_names(experiment: Experiment | None, workspace: Workspace) -> list[str]:
    """The runs of an experiment, or all that have begun in a workspace."""
    if experiment is not None:
        return [experiment.run_name(seed) for seed in experiment.seeds]
    folder = workspace.manifest() / "train"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def run_status(manifest: Manifest, run: str, experiment: Experiment | None, jobs: Jobs) -> RunStatus:
    """How far one run is."""
    records, weights = set(manifest.names("train", (run,))), manifest.names("train", (run, "weights"))
    tail = read_tail(manifest.workspace.metrics(run))
    line, max_steps, scheduled = tail.last, *_plan(manifest, run, experiment)
    owner, job, past = holder(manifest.workspace.run(run)), jobs.of(run), jobs.past.get(run)
    state = _state(records, owner, jobs, job, past)
    complete = state == "complete"
    step, rate, tokens = line.get("step", 0), tokens_per_second(line), line.get("tokens")
    rate = None if tail.is_stale() and not complete else rate
    tokens_a_step = tokens / step if step and isinstance(tokens, int) else None
    eta = (max_steps - step) * tokens_a_step / rate if max_steps and tokens_a_step and rate and not complete else None
    return RunStatus(
        run, state, step, max_steps, line.get("loss"), rate, eta, len(weights), scheduled,
        len(manifest.names("export", (run,))), None if owner is None else describe(owner),
        past.job if past else None, past.attempts if past else None, _reason(state, jobs, job, past),
        None if complete else tail.age_seconds, job.nodes or None if job else None,
        (past.last_end or None) if past else None, past.log if past else None,
        tuple(names_of(manifest.workspace, run)),
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
    if works is None or (past is not None and jobs.queue is None) or not jobs.visible:
        return "unknown"
    if past is not None and _became(past) != "stopped":
        return _became(past)
    return "stopped" if owner is not None or "begin" in records else "not started"


def _became(past: Past) -> str:
    """What became of a job that has ended: it stopped in order, died, or that is not known."""
    if past.state:
        return past.state
    return "failed" if past.reason and past.code != Stopped.exit_code else "stopped"


def _reason(state: str, jobs: Jobs, job: Job | None, past: Past | None) -> str | None:
    """Why a run does not go on: what its job waits for, or why the last attempt ended."""
    if state in ("complete", "running"):
        return None
    if state == "unknown" and (jobs.queue is None or past is None or not past.state):
        return None if jobs.visible else "its jobs are not visible"
    return (waits_for(job) if job else past.reason if past else "") or None


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


@dataclass(frozen=True)
class Tail:
    """The end of a metrics file."""

    last: dict[str, Any]  # the last logged step; empty if there is none
    age_seconds: float | None  # since the file was written
    usual_seconds: float  # from one logged step to the next

    def is_stale(self) -> bool:
        """Whether the last step is so old that its rate says nothing of now."""
        return self.age_seconds is not None and self.age_seconds > max(STALE_SECONDS, STALE_TIMES * self.usual_seconds)


def last_step(path: Path) -> dict[str, Any]:
    """The last logged step, from the end of a metrics file; empty if there is none."""
    return read_tail(path).last


def read_tail(path: Path) -> Tail:
    """The end of a metrics file, which may be damaged or missing."""
    try:
        with path.open("rb") as file:
            written = os.fstat(file.fileno()).st_mtime
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            raw = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return Tail({}, None, 0.0)
    parsed = map(parse_line, raw)  # the first line of the tail is cut
    steps = [line for line in parsed if line is not None and "loss" in line]
    usual = [seconds for line in steps if (seconds := seconds_of(line)) is not None]
    age = max(0.0, time.time() - written) if steps else None
    return Tail(steps[-1] if steps else {}, age, statistics.median(usual) if usual else 0.0)
