"""experiment, cluster, manifest -> the tasks of each stage that are missing, by the numbers that `--task` knows."""

from collections.abc import Sequence
from dataclasses import dataclass

from mistral.corpus import Plan as Corpus
from mistral.corpus import plan_units
from mistral.dataset import SEAL, unit_names
from mistral.deduplication import DUPLICATES
from mistral.errors import ConfigError
from pipeline import export
from pipeline.context import Context
from pipeline.preprocess import task_numbers
from pipeline.train import is_complete
from slurm.attempt import ATTEMPTS, Goal
from slurm.submit import Plan


@dataclass(frozen=True)
class Choice:
    """What the command line chooses: seeds and steps (all unless given), the number of tasks, and more flags."""

    seeds: Sequence[str] = ()
    steps: Sequence[int] = ()
    tasks: int | None = None
    flags: Sequence[str] = ()


def make_plans(context: Context, stages: Sequence[str], choice: Choice, corpus: Corpus | None = None) -> list[Plan]:
    """The missing tasks of some stages; the units of the corpus may be known already."""
    found = []
    if "preprocess" in stages:
        plan = preprocess_plan(context, choice, corpus)
        found += [plan] * passes_over(context)
    if "train" in stages:
        found.append(train_plan(context, choice))
    if "export" in stages:
        found.append(export_plan(context, choice, ahead="train" in stages))
    return found


def preprocess_plan(context: Context, choice: Choice, corpus: Corpus | None = None) -> Plan:
    """The tasks with units that are not recorded; the last one also prepares the evaluation sets, and seals.

    Raises:
        DataError: the corpus is not there.
    """
    experiment, manifest = context.experiment, context.manifest
    total = choice.tasks or context.cluster.stages.preprocess.tasks
    numbers: list[int] = []
    planned = None
    if any(manifest.find("preprocess", (name, SEAL)) is None for name in experiment.dataset_names()):
        recorded = set(unit_names(manifest, experiment.data.dataset_name()))
        units = (corpus or plan_units(experiment, context.workspace.sources(), fetch=False)).units
        planned = len(units)
        owners = zip(units, task_numbers(units, total), strict=True)
        numbers = sorted({number for unit, number in owners if unit.name not in recorded} | {total - 1})
    names = tuple((number, f"task {number} of {total}") for number in numbers)
    return Plan("preprocess", names, ("--tasks", str(total)), planned)


def passes_over(context: Context) -> int:
    """How often the tasks of preprocess run: where duplicates are to be found, all have hashed before any packs."""
    data = context.experiment.data
    hashed = data.deduplicate == "none" or context.manifest.find("preprocess", (data.dataset_name(), DUPLICATES))
    return 1 if hashed else 2


def train_plan(context: Context, choice: Choice) -> Plan:
    """The seeds that are not complete.

    Raises:
        ConfigError: the ranks do not divide the batch, or the config of a run changed.
    """
    experiment, numbers = context.experiment, {seed: number for number, seed in enumerate(context.experiment.seeds)}
    experiment.training.accumulation_steps(context.cluster.stages.train.world_size())
    chosen = experiment.choose_seeds(choice.seeds)
    left = [seed for seed in chosen if not is_complete(experiment, seed, context.manifest)]
    units = tuple((numbers[seed], experiment.run_name(seed)) for seed in left)
    return Plan("train", units, tuple(choice.flags))


def export_plan(context: Context, choice: Choice, *, ahead: bool) -> Plan:
    """The tasks with checkpoints that are not exported; the arguments are those of `missing_exports`."""
    total = choice.tasks or context.cluster.stages.export.tasks
    numbers = missing_exports(context, choice, ahead=ahead)
    seeds, steps = choice.seeds, choice.steps
    words = [word for seed in seeds for word in ("--seed", seed)] + [w for s in steps for w in ("--step", str(s))]
    names = tuple((number, f"task {number} of {total}") for number in numbers)
    return Plan("export", names, ("--tasks", str(total), *words))


def missing_exports(context: Context, choice: Choice, *, ahead: bool) -> dict[int, list[tuple[str, int]]]:
    """The checkpoints (seed, step) of each task of export that are not exported.

    Args:
        context: the experiment and the workspace.
        choice: which checkpoints, and into how many tasks they are cut.
        ahead: also those that are not trained yet, as the jobs wait for the training.

    Raises:
        ManifestError: nothing is trained yet.
    """
    experiment, manifest = context.experiment, context.manifest
    total = choice.tasks or context.cluster.stages.export.tasks
    chosen = sorted(experiment.choose_seeds(choice.seeds), key=experiment.run_name)
    recorded = {seed: export.recorded_steps(experiment, manifest, seed) for seed in chosen}
    scheduled = set(experiment.scheduled_steps())
    there = {seed: found | scheduled if ahead else found for seed, found in recorded.items()}
    planned = export.plan_units(experiment, context.workspace, there, choice.steps)
    done = {seed: export.exported_names(experiment, manifest, seed) for seed in recorded}
    cuts = [len(planned) * number // total for number in range(total + 1)]
    left = {
        number: [
            (seed, step)
            for seed, step in planned[cuts[number] : cuts[number + 1]]
            if step in there[seed] and f"checkpoint-{step}" not in done[seed]
        ]
        for number in range(total)
    }
    return {number: units for number, units in left.items() if units}


def goal_of(context: Context, stage: str, task: int) -> Goal:
    """What a task makes, and how patient we are with it.

    Raises:
        ConfigError: there is no such seed.
    """
    experiment = context.experiment
    if stage == "train":
        seeds = list(experiment.seeds)
        if task >= len(seeds):
            raise ConfigError(f"--task: found {task}, expected 0 to {len(seeds) - 1}, one for each seed; see status")
        run = experiment.run_name(seeds[task])
        resources = context.cluster.stages.train
        records = ((run, "weights"), (run, "state"))
        return Goal(stage, records, resources.max_attempts_without_progress, resources.world_size())
    names = experiment.dataset_names() if stage == "preprocess" else map(experiment.run_name, experiment.seeds)
    return Goal(stage, tuple((name,) for name in names), ATTEMPTS)
