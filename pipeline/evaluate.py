"""recorded weights, validation split and evaluation sets -> loss, perplexity and accuracy of each checkpoint."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mistral.cohort import refuse_other_configs
from mistral.config import Experiment
from mistral.corpus import plan_units
from mistral.dataset import SEAL, open_split
from mistral.errors import CheckpointError, ConfigError, DataError, ManifestError
from mistral.manifest import Manifest, Record
from mistral.workspace import step_name, step_number
from pipeline.context import Context
from pipeline.preprocess import require_same_source
from pipeline.results import as_table
from pipeline.steps import advice

if TYPE_CHECKING:  # torch is imported where a model is measured, and nowhere else
    import torch

    from mistral.shards import TokenStream
    from mistral.windows import WindowSet

Measures = dict[str, dict[str, float]]  # as in metrics.jsonl: validation, wikitext103, lambada
SHOWN = ("loss", "perplexity", "word_perplexity", "accuracy")


@dataclass(frozen=True)
class Row:
    """One measured checkpoint."""

    seed: str
    step: int
    evaluation: Measures


@dataclass(frozen=True)
class EvaluateSummary:
    """What was measured, and one line for each checkpoint that was refused."""

    rows: list[Row]
    refused: list[str]

    def to_json(self) -> list[dict[str, Any]]:
        """For --json."""
        return [asdict(row) for row in self.rows]

    def as_text(self) -> str:
        """For people: a line for each measure of each checkpoint."""
        lines = [
            {"seed": row.seed, "step": row.step, "text": text} | {name: measures.get(name) for name in SHOWN}
            for row in self.rows
            for text, measures in row.evaluation.items()
        ]
        return as_table(lines, ("seed", "step", "text", *SHOWN))


@dataclass(frozen=True)
class Measured:
    """What the checkpoints are measured on."""

    experiment: Experiment
    manifest: Manifest
    dataset: Record
    validation: "TokenStream | None"
    sets: "list[WindowSet]"
    device: "torch.device"


def evaluate(context: Context, seeds: Sequence[str], steps: Sequence[int]) -> EvaluateSummary:
    """Measure recorded checkpoints in fp32, in this process; on a GPU where there is one.

    In training the same is measured in the training's precision and on all its ranks: equal up to rounding.

    Args:
        context: the experiment, and where its checkpoints are recorded.
        seeds: names of seeds.
        steps: only these; every recorded step unless given.

    Raises:
        ConfigError: there is nothing to measure on, or the config is not the one that a run began with.
        ManifestError: a dataset is not recorded, or no checkpoint, or not one that was asked for.
    """
    refuse_other_configs(context.manifest, context.experiment, seeds)
    chosen = recorded_checkpoints(context, seeds, steps)
    measured = open_measured(context)
    rows, refused = [], []
    context.progress.start(f"evaluate {context.experiment.name}", len(chosen), "checkpoints")
    try:
        for seed, step in chosen:
            try:
                rows.append(Row(seed, step, measure_checkpoint(measured, seed, step)))
            except (CheckpointError, ManifestError) as error:
                refused.append(f"  {context.experiment.run_name(seed)}, step {step}: {error}")
            context.progress.advance(1)
    finally:
        context.progress.finish()
    return EvaluateSummary(rows, refused)


def recorded_checkpoints(context: Context, seeds: Sequence[str], steps: Sequence[int]) -> list[tuple[str, int]]:
    """(seed, step) of the chosen checkpoints, by seed and step.

    Raises:
        ManifestError: none is recorded, or not a step that was asked for.
    """
    runs = {seed: context.experiment.run_name(seed) for seed in seeds}
    found = {
        seed: set(map(step_number, context.manifest.names("train", (run, "weights")))) for seed, run in runs.items()
    }
    absent = [(seed, step) for seed in seeds for step in sorted(set(steps) - found[seed])]
    if absent or not any(found.values()):
        names = ", ".join(f"{runs[seed]} step {step}" for seed, step in absent[:5]) or "any step"
        train = context.experiment.command("train", context.workspace.root)
        told = advice(context.experiment, found, absent, train) or f"  run: {train}"
        raise ManifestError(
            f"{context.experiment.name}: found no weights of {names}, expected them to be recorded\n{told}"
        )
    return [(seed, step) for seed in seeds for step in sorted(set(steps) or found[seed])]


def open_measured(context: Context) -> Measured:
    """Open the validation split and the evaluation sets.

    Raises:
        ConfigError: the experiment has neither.
        ManifestError: they are not recorded, or changed since.
    """
    import torch

    from mistral import engine
    from mistral.windows import open_sets

    experiment, manifest, workspace = context.experiment, context.manifest, context.workspace
    if not experiment.data.has_validation() and not experiment.evaluation_sets():
        raise ConfigError(
            f"{experiment.name}: found neither a validation split nor an evaluation set, expected one to measure on\n"
            "  add evaluation: {wikitext103: {}}, and run preprocess"
        )
    advice = f"run: {experiment.command('preprocess', workspace.root)}"
    dataset = manifest.get("preprocess", (experiment.data.dataset_name(), SEAL), advice)
    engine.prepare_process(experiment.training, context.cluster.stages.train.threads_per_rank)
    splits = ["validation"] if experiment.data.has_validation() else []
    streams = [open_split(workspace, dataset, split, experiment.seq_len) for split in splits]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sets = open_sets(experiment, manifest, dataset)
    tell_changed_sources(context)
    return Measured(experiment, manifest, dataset, streams[0] if streams else None, sets, device)


def tell_changed_sources(context: Context) -> None:
    """Say that an evaluation set's files are not those that were tokenized, as these tokens are what is measured on."""
    manifest, workspace = context.manifest, context.workspace
    for name, one in context.experiment.evaluation_sets().items():
        try:
            require_same_source(one, manifest, plan_units(one, workspace.sources(), fetch=False), evaluation_set=True)
        except ManifestError as error:
            context.progress.say(
                f"WARNING: evaluation.{name} is measured on the recorded tokens of {one.data.dataset_name()}, not on "
                f"the files of now: {error}"
            )
        except DataError:  # the source is gone, or was fetched elsewhere: the recorded tokens are all there is
            continue


def measure_checkpoint(measured: Measured, seed: str, step: int) -> Measures:
    """Load one checkpoint, its files checked against their record, and measure it.

    Raises:
        CheckpointError: its files changed, or it was trained on another dataset.
        ManifestError: its record, or that of its run's beginning, is not there.
    """
    from mistral import evaluation
    from mistral.model import load_model
    from mistral.ranks import Ranks

    experiment, manifest, run = measured.experiment, measured.manifest, measured.experiment.run_name(seed)
    manifest.get("train", (run, "begin"), "run verify")
    weights = manifest.get("train", (run, "weights", step_name(step)), "run train")
    if problems := manifest.damage(weights):
        raise CheckpointError(f"found {'; '.join(problems)}; restore the file, or remove its record and train again")
    if weights.inputs.get("dataset") != measured.dataset.content:
        raise CheckpointError(f"found weights of another dataset, expected {measured.dataset.key[0]}; run verify")
    network = load_model(manifest.workspace.weights(run, step), experiment.model).to(measured.device)
    size, limit = experiment.training.micro_batch_size, experiment.evaluation.max_sequences
    results = {} if measured.validation is None else {
        "validation": evaluation.evaluate(network, measured.validation, size, limit, Ranks())
    }  # fmt: skip
    return results | {one.name: evaluation.measure(network, one, size, Ranks()) for one in measured.sets}
