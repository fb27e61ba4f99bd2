"""recorded checkpoints -> exported folders: whatever is recorded and not exported yet."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mistral.cohort import refuse_other_configs
from mistral.config import Experiment
from mistral.dataset import SEAL
from mistral.errors import CheckpointError, ConfigError, Findings, ManifestError
from mistral.extension import plan_of
from mistral.manifest import Manifest, Record
from mistral.numbers import counted
from mistral.progress import Progress
from mistral.tensorfiles import dtype_of
from mistral.workspace import Workspace, step_name, step_number
from pipeline.steps import advice


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
        lines = [f"exported {counted(len(self.exported), 'checkpoints')}, {self.already:,} were there already"]
        if self.missing:
            more = ", ..." if len(self.missing) > 5 else ""
            lines.append(
                f"not trained yet: {counted(len(self.missing), 'checkpoints')} ({', '.join(self.missing[:5])}{more})"
            )
        return "\n".join(lines)


def refuse(experiment: Experiment, manifest: Manifest, seeds: Sequence[str] = ()) -> None:
    """Refuse what cannot be exported, as far as that is known before any work.

    Raises:
        ConfigError: there is no such seed, or the config is not the one that a run began with, which its model cards
            tell.
    """
    refuse_other_configs(manifest, experiment, experiment.choose_seeds(seeds))


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
        task: do only this one, counted from 0; a number means the same checkpoints while training goes on.

    Raises:
        ConfigError: there is no such seed or task, or the config is not the one that a run began with.
        ManifestError: nothing is trained yet, or not a step that was asked for.
        Findings: some checkpoints were refused; lists them.
    """
    manifest = Manifest(workspace)
    refuse(experiment, manifest, seeds)
    chosen = sorted(experiment.choose_seeds(seeds), key=experiment.run_name)
    recorded = {seed: recorded_steps(experiment, manifest, seed) for seed in chosen}
    planned = plan_units(experiment, workspace, recorded, steps)
    if task is not None:
        if not 0 <= task < tasks:
            raise ConfigError(f"--task: found {task}, expected 0 to {tasks - 1} for {tasks} tasks; see --tasks")
        planned = planned[len(planned) * task // tasks : len(planned) * (task + 1) // tasks]
    units = [(seed, step) for seed, step in planned if step in recorded[seed]]
    lost = lost_records(experiment, manifest, planned, recorded)
    absent = [unit for unit in planned if unit[1] not in recorded[unit[0]] and unit not in lost]
    missing = [name_of(experiment, seed, step) for seed, step in absent]
    broken = broken_records(experiment, manifest, units) | lost
    left = [unit for unit in units if unit not in broken and not is_exported(experiment, manifest, *unit)]
    exported, refused = _export_all(experiment, manifest, left, len(units), progress) if left else ([], [])
    if refused := [*broken.values(), *refused]:
        raise Findings(
            f"found {counted(len(refused), 'checkpoints')} that cannot be exported, {len(exported)} were:\n"
            + "\n".join(refused)
        )
    if not left:
        progress.say(f"{experiment.name}: nothing to export")
    return ExportSummary(tuple(exported), len(units) - len(left), tuple(missing))


def broken_records(
    experiment: Experiment, manifest: Manifest, units: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], str]:
    """What is wrong with the records of checkpoints and of their exports that cannot be read."""
    broken = {}
    for seed, step in units:
        run = experiment.run_name(seed)
        try:
            manifest.find("train", (run, "weights", step_name(step)))
            manifest.find("export", (run, f"checkpoint-{step}"))
        except ManifestError as error:
            broken[seed, step] = f"  {name_of(experiment, seed, step)}: {error}"
    return broken


def lost_records(
    experiment: Experiment, manifest: Manifest, planned: Sequence[tuple[str, int]], recorded: Mapping[str, set[int]]
) -> dict[tuple[str, int], str]:
    """Checkpoints whose weights have no record, though the run has passed them: they were trained."""
    lost = {}
    for seed, step in planned:
        if step in recorded[seed] or step > max(recorded[seed], default=-1):
            continue
        begun = manifest.find("train", (experiment.run_name(seed), "begin"))
        if begun and step in plan_of(manifest, begun).facts["scheduled_steps"]:
            command = experiment.command("restore", manifest.workspace.root, "--seed", seed)
            name = name_of(experiment, seed, step)
            lost[seed, step] = f"  {name}: found no record of its weights, though the run has passed it; run: {command}"
    return lost


def recorded_steps(experiment: Experiment, manifest: Manifest, seed: str) -> set[int]:
    """The steps whose weights are recorded; reads one folder."""
    return {step_number(name) for name in manifest.names("train", (experiment.run_name(seed), "weights"))}


def exported_names(experiment: Experiment, manifest: Manifest, seed: str) -> set[str]:
    """`checkpoint-1000`: what is exported of a run in the dtype of the config; reads the record of each."""
    names = manifest.names("export", (experiment.run_name(seed),))
    return {name for name in names if is_exported(experiment, manifest, seed, step_number(name))}


def is_exported(experiment: Experiment, manifest: Manifest, seed: str, step: int) -> bool:
    """Whether a checkpoint is exported in the dtype of the config; what has another one is exported again."""
    try:
        record = manifest.find("export", (experiment.run_name(seed), f"checkpoint-{step}"))
    except ManifestError:  # damaged: for verify to tell, and for somebody to restore
        return True
    return record is not None and dtype_of(record) == experiment.export.dtype


def name_of(experiment: Experiment, seed: str, step: int) -> str:
    """`alias-gpt2-small-x21/checkpoint-1000`."""
    return f"{experiment.run_name(seed)}/checkpoint-{step}"


def plan_units(
    experiment: Experiment, workspace: Workspace, recorded: dict[str, set[int]], steps: Sequence[int]
) -> list[tuple[str, int]]:
    """Planned (seed, step) pairs sorted by run and step. Seeds without weights are skipped.

    Args:
        experiment: what was planned.
        workspace: where it is recorded.
        recorded: the recorded steps of each chosen seed.
        steps: what was asked for; the schedule, and whatever is recorded, unless given.

    Raises:
        ManifestError: nothing is recorded, or not a step that was asked for.
    """
    scheduled, started = set(experiment.scheduled_steps()), any(recorded.values())
    units = [(seed, step) for seed, found in recorded.items() for step in sorted(set(steps) or found | scheduled)]
    wanted = [(seed, step) for seed, step in units if step not in recorded[seed] and (recorded[seed] or not started)]
    if wanted and (steps or not started):
        names = ", ".join(name_of(experiment, seed, step) for seed, step in wanted[:5])
        told = advice(experiment, recorded, wanted, experiment.command("train", workspace.root))
        raise ManifestError(f"{experiment.name}: found no weights of {names}, expected them to be recorded\n{told}")
    return units


def _dataset(experiment: Experiment, manifest: Manifest) -> Record:
    name = experiment.data.dataset_name()
    advice = f"run: {experiment.command('preprocess', manifest.workspace.root)}"
    dataset = manifest.get("preprocess", (name, SEAL), advice)
    if problems := manifest.damage(dataset):
        raise ManifestError(
            f"{name}: found a tokenizer that changed since it was recorded: {'; '.join(problems)}\n  restore its files"
        )
    return dataset


def _export_all(
    experiment: Experiment, manifest: Manifest, units: list[tuple[str, int]], total: int, progress: Progress
) -> tuple[list[str], list[str]]:
    """Export units; returns the names of those that were, and one line for each that was refused."""
    from mistral.hub import export_checkpoint

    for run in dict.fromkeys(experiment.run_name(seed) for seed, _ in units):
        manifest.workspace.refuse_links(manifest.workspace.root / "exports" / run)
    dataset = _dataset(experiment, manifest)
    exported, refused = [], []
    progress.start(f"export {experiment.name}", total, "checkpoints", total - len(units))
    try:
        for seed, step in units:
            run = experiment.run_name(seed)
            try:
                weights = manifest.get("train", (run, "weights", step_name(step)), "run train")
                export_checkpoint(experiment, seed, manifest, weights, dataset)
                exported.append(name_of(experiment, seed, step))
            except (CheckpointError, ManifestError) as error:
                refused.append(f"  {name_of(experiment, seed, step)}: {error}")
            progress.advance(1)
    finally:
        progress.finish()
    return exported, refused
