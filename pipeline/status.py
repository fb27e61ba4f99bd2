"""manifest folders, leases and the tails of metrics -> how far each run is; asks nothing else."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mistral.config import Experiment
from mistral.dataset import SEAL, unit_names
from mistral.errors import ManifestError
from mistral.lease import Owner, describe, holder
from mistral.manifest import Manifest
from mistral.metrics import parse_line, tokens_per_second
from mistral.workspace import Workspace
from pipeline.local import is_alive
from pipeline.results import as_table

Alive = Callable[[Owner], bool | None]
TAIL_BYTES = 8192
COLUMNS = ("run", "state", "step", "loss", "tokens_per_second", "eta_seconds", "weights", "exported", "owner")


@dataclass(frozen=True)
class RunStatus:
    """How far one run is."""

    run: str
    state: str  # not started, running, stopped, unknown (its owner cannot be asked from here), complete
    step: int
    max_steps: int | None
    loss: float | None
    tokens_per_second: float | None
    eta_seconds: float | None
    weights: int
    scheduled: int | None
    exported: int
    owner: str | None


@dataclass(frozen=True)
class StatusReport:
    """How far a dataset and its runs are."""

    dataset: str | None
    units: int
    sealed: bool
    runs: list[RunStatus]

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
            }
            for run in self.runs
        ]
        head = (
            [f"{self.dataset}: {self.units} units, {'whole' if self.sealed else 'unfinished'}"] if self.dataset else []
        )
        return "\n".join([*head, as_table(rows, COLUMNS)])


def status(experiment: Experiment | None, workspace: Workspace, alive: Alive = is_alive) -> StatusReport:
    """How far the runs of an experiment are, or all runs of a workspace.

    Lists folders of the manifest, and reads at most a record and the end of the metrics of each run.

    Args:
        experiment: whose runs; all of the workspace unless given.
        workspace: where they are.
        alive: whether the owner of a run still works.
    """
    manifest = Manifest(workspace)
    if experiment is None:
        folder = workspace.manifest() / "train"
        runs = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return StatusReport(None, 0, False, [run_status(manifest, run, None, alive) for run in runs])
    dataset = experiment.data.dataset_name()
    names = [experiment.run_name(seed) for seed in experiment.seeds]
    sealed = SEAL in manifest.names("preprocess", (dataset,))
    units = len(unit_names(manifest, dataset))
    return StatusReport(dataset, units, sealed, [run_status(manifest, name, experiment, alive) for name in names])


def run_status(manifest: Manifest, run: str, experiment: Experiment | None, alive: Alive = is_alive) -> RunStatus:
    """How far one run is."""
    records, weights = set(manifest.names("train", (run,))), manifest.names("train", (run, "weights"))
    line = last_step(manifest.workspace.metrics(run))
    max_steps, scheduled = _plan(manifest, run, experiment)
    step, rate, tokens = line.get("step", 0), tokens_per_second(line), line.get("tokens")
    tokens_a_step = tokens / step if step and isinstance(tokens, int) else None
    owner = holder(manifest.workspace.run(run))
    state = _state(records, owner, alive)
    eta = (max_steps - step) * tokens_a_step / rate if max_steps and tokens_a_step and rate else None
    eta = None if state == "complete" else eta
    return RunStatus(
        run, state, step, max_steps, line.get("loss"), rate, eta, len(weights), scheduled,
        len(manifest.names("export", (run,))), None if owner is None else describe(owner),
    )  # fmt: skip


def _state(records: set[str], owner: Owner | None, alive: Alive) -> str:
    """What a run does, by the names of its records and the owner of its lease."""
    if "complete" in records:
        return "complete"
    if owner is None:
        return "stopped" if "begin" in records else "not started"
    works = alive(owner)
    return "unknown" if works is None else "running" if works else "stopped"


def _plan(manifest: Manifest, run: str, experiment: Experiment | None) -> tuple[int | None, int | None]:
    """The last step, and how many steps are kept."""
    if experiment is not None:
        return experiment.training.max_steps, len(experiment.scheduled_steps())
    try:
        begun = manifest.find("train", (run, "begin"))
    except ManifestError:  # verify says what is wrong with it
        begun = None
    return (begun.facts["scheduled_steps"][-1], len(begun.facts["scheduled_steps"])) if begun else (None, None)


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
