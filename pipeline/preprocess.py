"""corpus -> sealed dataset of token shards, unit by unit; finds what is recorded and does what is missing."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from mistral.config import Experiment, HubSource
from mistral.corpus import Plan, Unit, plan_units
from mistral.dataset import SEAL, seal, unit_names
from mistral.deduplication import find_duplicates, hash_missing
from mistral.errors import ConfigError, DataError, ManifestError, MistralError
from mistral.manifest import Manifest, Record
from mistral.numbers import counted
from mistral.ordered import Workers
from mistral.progress import Progress
from mistral.splitting import training_texts
from mistral.tokens import read_tokenizer
from mistral.units import Work, has_other_text, pack_missing
from mistral.vocabulary import copy_tokenizer, write_tokenizer
from mistral.workspace import Workspace


@dataclass(frozen=True)
class PreprocessSummary:
    """What the stage found and did."""

    dataset: str
    units: int
    recorded: int
    packed_now: int
    facts: dict[str, Any] | None  # of the sealed dataset; None while units are missing
    evaluation_sets: dict[str, "PreprocessSummary"] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def as_text(self) -> str:
        """For people."""
        return "\n".join(line for summary in (self, *self.evaluation_sets.values()) for line in summary._lines())

    def _lines(self) -> list[str]:
        if self.facts is None:
            return [f"{self.dataset}: {self.recorded} of {counted(self.units, 'units')} recorded"]
        lines = [f"{self.dataset}: whole"]
        for split, totals in self.facts["splits"].items():
            if totals["tokens"]:
                lines.append(
                    f"  {split}: {totals['documents']:,} documents, {totals['tokens']:,} tokens, "
                    f"{totals['text_bytes'] / totals['tokens']:.2f} bytes a token; the longest documents have "
                    f"{', '.join(f'{length:,}' for length in totals['longest'])} tokens"
                )
        if len(self.facts["sources"]) > 1:
            total = sum(share["tokens"] for share in self.facts["sources"])
            shares = ", ".join(f"{share['tokens'] / max(total, 1):.1%}" for share in self.facts["sources"])
            lines.append(f"  shares of the sources, in tokens: {shares}")
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in self.facts["skipped"].items()) or "none"
        lines.append(f"  documents skipped: {skipped}")
        megabytes, cpu_seconds = self.facts["source_bytes"] / 1e6, self.facts["timing"]["cpu_seconds"]
        lines.append(f"  {megabytes:,.0f} MB of source at {megabytes / max(cpu_seconds, 1e-9):,.0f} MB a CPU-second")
        return lines


def refuse(experiment: Experiment, workspace: Workspace, tasks: int = 1, task: int | None = None) -> None:
    """Refuse what cannot be preprocessed, as far as that is known before any work.

    Raises:
        ConfigError: there is no such task.
        DataError: the source of an evaluation set is not there; what comes from a network is not looked for.
    """
    if task is not None and task >= tasks:
        raise ConfigError(f"--task: found {task}, expected 0 to {tasks - 1} for {tasks} tasks; see --tasks")
    for name, one in experiment.evaluation_sets().items():
        sealed = Manifest(workspace).find("preprocess", (one.data.dataset_name(), SEAL))
        if sealed is None and not any(isinstance(source, HubSource) for source in one.data.sources()):
            with errors_of(name):
                plan_units(one, workspace.sources(), fetch=False)


def preprocess(
    experiment: Experiment,
    workspace: Workspace,
    progress: Progress,
    *,
    tasks: int = 1,
    task: int | None = None,
    workers: int = 1,
) -> PreprocessSummary:
    """Pack the units of an experiment's dataset that are not recorded yet, and seal it once all are.

    Its evaluation sets follow. They are small and belong to the last task, so that they change nobody's numbers.

    Args:
        experiment: whose data section says what to read.
        workspace: where the shards go.
        progress: receives megabytes of source text.
        tasks: into how many tasks the units are cut.
        task: do only this one, counted from 0; all of them unless given.
        workers: number of threads that parse and tokenize.

    Raises:
        as `refuse`; DataError: the corpus cannot be read, or a split stays empty.
        ManifestError: the source changed since units were recorded.
    """
    refuse(experiment, workspace, tasks, task)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the threads are our own
    cut = None if task is None else (tasks, task)
    sets: dict[str, PreprocessSummary] = {}
    with Workers(workers) as threads:
        summary = prepare(experiment, workspace, progress, threads, cut=cut)
        if task is None or task == tasks - 1:
            for name, one in experiment.evaluation_sets().items():
                with errors_of(name):
                    sets[name] = prepare(one, workspace, progress, threads, measures=summary.dataset)
    return replace(summary, evaluation_sets=sets)


CHANGED_CORPUS = "  put the files back, or give the new corpus another data.name"
CHANGED_SET = (
    "  put the files back; or give the changed file another name, and name that in the `source` of the evaluation set, "
    "which makes it another dataset"
)


@contextlib.contextmanager
def errors_of(evaluation_set: str) -> Iterator[None]:
    """Say of which evaluation set an error tells."""
    try:
        yield
    except MistralError as error:
        raise type(error)(f"evaluation.{evaluation_set}: {error}") from error


def prepare(
    experiment: Experiment,
    workspace: Workspace,
    progress: Progress,
    workers: Workers,
    *,
    cut: tuple[int, int] | None = None,
    measures: str | None = None,
) -> PreprocessSummary:
    """Pack and seal one dataset.

    Args:
        experiment: whose data it is.
        workspace: where the shards go.
        progress: receives megabytes of source text.
        workers: the threads that parse and tokenize.
        cut: number of tasks, and which of them to do; all units unless given.
        measures: of an evaluation set, the dataset whose tokenizer it has; its words are counted, and it may be shorter
            than a sequence.
    """
    manifest, dataset = Manifest(workspace), experiment.data.dataset_name()
    for folder in ("", "train", "validation", "tokenizer", "hashes"):
        workspace.refuse_links(workspace.dataset(dataset) / folder)
    sealed = manifest.find("preprocess", (dataset, SEAL))
    plan = _plan(experiment, workspace, sealed, progress)
    require_same_source(experiment, manifest, plan, evaluation_set=measures is not None)
    if plan is None or sealed is not None:
        facts = sealed.facts if sealed else None
        count = len(unit_names(manifest, dataset))
        progress.say(f"{dataset}: whole, nothing to preprocess")
        return PreprocessSummary(dataset, count, count, 0, facts)
    if measures is None:
        write_tokenizer(experiment, workspace.tokenizer(dataset), partial(training_texts, experiment.data, plan))
    else:
        copy_tokenizer(workspace.tokenizer(measures), workspace.tokenizer(dataset))
    tokenizer = read_tokenizer(workspace.tokenizer(dataset), experiment.data.tokenizer_engine)
    mine = list(plan.units) if cut is None else tasks_of(plan.units, *cut)
    work = Work(experiment, manifest, plan, tokenizer, progress, workers, counts_words=measures is not None)
    if experiment.data.deduplicate == "exact":
        hash_missing(manifest, experiment, plan, mine, workers=workers, progress=progress)
        duplicates = find_duplicates(manifest, experiment, plan)
        if duplicates is None:
            progress.say(f"{dataset}: hashed; run every other task, then this one again to pack its units")
            return PreprocessSummary(dataset, len(plan.units), len(unit_names(manifest, dataset)), 0, None)
        work = replace(work, duplicates=duplicates)
    packed = pack_missing(work, mine)
    recorded = unit_names(manifest, dataset)
    if len(recorded) < len(plan.units):
        return PreprocessSummary(dataset, len(plan.units), len(recorded), packed, None)
    require_same_source(experiment, manifest, plan, evaluation_set=measures is not None)  # what was read meanwhile
    records = [manifest.get("preprocess", (dataset, unit.name), "run preprocess again") for unit in plan.units]
    whole = seal(manifest, experiment, tokenizer, records, commits=plan.commits, whole_sequence=measures is None)
    return PreprocessSummary(dataset, len(plan.units), len(recorded), packed, whole.facts)


@dataclass(frozen=True)
class Fetched:
    """What is in the workspace, so that preprocess needs no network."""

    dataset: str
    plan: Plan
    evaluation_sets: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        units, size = len(self.plan.units), self._bytes()
        return {"dataset": self.dataset, "units": units, "bytes": size, "evaluation_sets": self.evaluation_sets}

    def as_text(self) -> str:
        """For people."""
        return (
            f"{self.dataset}: {counted(len(self.plan.units), 'units')}, {self._bytes() / 1e6:,.0f} MB, "
            f"{' and '.join(['the tokenizer', *self.evaluation_sets])}: here; preprocess needs no network"
        )

    def _bytes(self) -> int:
        return sum(unit.bytes() for unit in self.plan.units)


def fetch(experiment: Experiment, workspace: Workspace, progress: Progress | None = None) -> Fetched:
    """Put what comes from a network, and a tokenizer that is trained, into the workspace.

    Raises:
        DataError: the corpus or the tokenizer cannot be had.
    """
    plan = plan_units(experiment, workspace.sources(), progress=progress)
    dataset = experiment.data.dataset_name()
    write_tokenizer(experiment, workspace.tokenizer(dataset), partial(training_texts, experiment.data, plan))
    for name, one in experiment.evaluation_sets().items():
        with errors_of(name):
            plan_units(one, workspace.sources(), progress=progress)
    return Fetched(dataset, plan, tuple(experiment.evaluation_sets()))


def _plan(experiment: Experiment, workspace: Workspace, sealed: Record | None, progress: Progress) -> Plan | None:
    """The units; None if the source is gone but the dataset is whole."""
    try:
        return plan_units(experiment, workspace.sources(), fetch=sealed is None, progress=progress)
    except DataError as error:
        if sealed is None:
            raise
        progress.say(f"the source is not there any more ({str(error).splitlines()[0]}); its dataset is whole")
        return None


def require_same_source(
    experiment: Experiment, manifest: Manifest, plan: Plan | None, *, evaluation_set: bool = False
) -> None:
    """Refuse a source whose files changed since units of it were recorded.

    Args:
        experiment: whose data it is.
        manifest: where the units are recorded.
        plan: the units of now; None if the source is gone.
        evaluation_set: whether it is one, which is small: files that were touched are read again also when it is whole.

    Raises:
        ManifestError: names the units that differ.
    """
    if plan is None:
        return
    dataset, data = experiment.data.dataset_name(), experiment.data.identity()
    planned = {unit.name: unit for unit in plan.units}
    sealed, lines = manifest.find("preprocess", (dataset, SEAL)), []
    for name in unit_names(manifest, dataset):
        record = manifest.get("preprocess", (dataset, name), "run preprocess again")
        unit = planned.get(name)
        if unit is None or unit.digest(data) != record.config:
            now = [asdict(piece) for piece in unit.pieces] if unit else []
            lines.append(f"  unit {name}: {describe_change(record.facts['pieces'], now)}")
        elif (sealed is None or evaluation_set) and has_other_text(experiment.data, unit, plan.files, record):
            lines.append(f"  unit {name}: other documents of the same size, in files that were touched since")
    if sealed is not None:
        added = [name for name in planned if name not in sealed.inputs]
        lines += [f"  unit {name}: new" for name in added]
    if lines:
        raise ManifestError(
            f"{dataset}: the source differs from the one that was recorded:\n"
            + "\n".join(lines[:10])
            + "\n"
            + (CHANGED_SET if evaluation_set else CHANGED_CORPUS)
        )


def describe_change(then: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    """Which files of a unit came, went or changed their size."""
    before, after = ({(p["name"], p["start"]): p["bytes"] for p in pieces} for pieces in (then, now))
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    parts = [
        f"{name} was {before.get((name, s), 'absent')} bytes, is {after.get((name, s), 'absent')}"
        for name, s in changed
    ]
    return "; ".join(parts[:3]) or "the order or kind of its files"


def tasks_of(units: tuple[Unit, ...], tasks: int, task: int) -> list[Unit]:
    """The units of one task: contiguous groups of about equal bytes."""
    return [unit for unit, number in zip(units, task_numbers(units, tasks), strict=True) if number == task]


def task_numbers(units: Sequence[Unit], tasks: int) -> list[int]:
    """Which task each unit belongs to, out of so many."""
    sizes, before, numbers = [unit.bytes() for unit in units], 0, []
    total = max(sum(sizes), 1)
    for size in sizes:
        numbers.append(min(int((before + size / 2) * tasks / total), tasks - 1))
        before += size
    return numbers
