"""recorded checkpoints -> exported folders: whatever is recorded and not exported yet."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mistral.config import Experiment
from mistral.dataset import SEAL
from mistral.errors import CheckpointError, ConfigError, Findings, ManifestError
from mistral.manifest import Manifest
from mistral.progress import Progress
from mistral.workspace import Workspace, step_name, step_number


@dataclass(frozen=True)
class ExportSummary:
    """What the stage found and did; checkpoints are named `run/checkpoint-N`."""

    exported: tuple[str, ...]
    already: int
    missing: tuple[str, ...]  # planned, but not trained yet

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def as_text(self) -> str:
        """For people."""
        lines = [f"exported {len(self.exported)} checkpoints, {self.already} were there already"]
        if self.missing:
            more = ", ..." if len(self.missing) > 5 else ""
            lines.append(f"not trained yet: {len(self.missing)} checkpoints ({', '.join(self.missing[:5])}{more})")
        return "\n".join(lines)


def export(
    experiment: Experiment,
    workspace: Workspace,
    progress: Progress,
    *,
    seeds: Sequence[str] = (),
    steps: Sequence[int] = (),
    tasks: int = 1,
    task: int | None = None,
) -> ExportSummary:
    """Export every recorded checkpoint that is chosen and not exported yet.

    Args:
        experiment: what was trained.
        workspace: where it lies.
        progress: receives checkpoints.
        seeds: names of seeds; all unless given.
        steps: only these steps; all recorded ones unless given.
        tasks: into how many tasks the checkpoints are cut.
        task: do only this one, counted from 0.

    Raises:
        ManifestError: nothing is trained yet, or not a step that was asked for.
        Findings: some checkpoints were refused; lists them.
    """
    manifest = Manifest(workspace)
    chosen = [seed for seed in experiment.seeds if not seeds or seed in seeds]
    units, missing = find_units(experiment, manifest, chosen, steps)
    if task is not None:
        if task >= tasks:
            raise ConfigError(f"--task: found {task}, expected 0 to {tasks - 1} for {tasks} tasks; see --tasks")
        units = units[len(units) * task // tasks : len(units) * (task + 1) // tasks]
    left = [(seed, step) for seed, step in units if not is_exported(experiment, manifest, seed, step)]
    exported = _export_all(experiment, manifest, left, len(units), progress)
    return ExportSummary(tuple(exported), len(units) - len(left), tuple(missing))


def find_units(
    experiment: Experiment, manifest: Manifest, seeds: Sequence[str], steps: Sequence[int]
) -> tuple[list[tuple[str, int]], list[str]]:
    """Recorded (seed, step) pairs sorted by key, and the names of planned checkpoints that are not recorded.

    Raises:
        ManifestError: nothing is recorded, or not a step that was asked for.
    """
    units: list[tuple[str, int]] = []
    missing: list[str] = []
    for seed in sorted(seeds, key=experiment.run_name):
        run = experiment.run_name(seed)
        recorded = {step_number(name) for name in manifest.names("train", (run, "weights"))}
        planned = set(steps) or recorded | set(experiment.scheduled_steps())
        units += [(seed, step) for step in sorted(planned & recorded)]
        missing += [f"{run}/checkpoint-{step}" for step in sorted(planned - recorded)]
    if not units or (steps and missing):
        raise ManifestError(
            f"{experiment.name}: found no weights of {', '.join(missing[:5])}, expected them to be recorded\n"
            f"  run: mistral-pipeline train {experiment.name}"
        )
    return units, missing


def is_exported(experiment: Experiment, manifest: Manifest, seed: str, step: int) -> bool:
    """Whether a checkpoint is recorded as exported."""
    return manifest.find("export", (experiment.run_name(seed), f"checkpoint-{step}")) is not None


def _export_all(
    experiment: Experiment, manifest: Manifest, units: list[tuple[str, int]], total: int, progress: Progress
) -> list[str]:
    if not units:
        progress.say(f"{experiment.name}: nothing to export")
        return []
    from mistral.hub import export_checkpoint

    dataset = manifest.get("preprocess", (experiment.data.dataset_name(), SEAL), "run preprocess")
    exported, refused = [], []
    progress.start(f"export {experiment.name}", total, "checkpoints", total - len(units))
    try:
        for seed, step in units:
            run = experiment.run_name(seed)
            weights = manifest.get("train", (run, "weights", step_name(step)), "run train")
            try:
                export_checkpoint(experiment, seed, manifest, weights, dataset)
                exported.append(f"{run}/checkpoint-{step}")
            except CheckpointError as error:
                refused.append(f"  {run}/checkpoint-{step}: {error}")
            progress.advance(1)
    finally:
        progress.finish()
    if refused:
        raise Findings(
            f"found {len(refused)} checkpoints that cannot be exported, {len(exported)} were:\n" + "\n".join(refused)
        )
    return exported
