"""corpus -> sealed dataset of token shards, unit by unit; finds what is recorded and does what is missing."""

import contextlib
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mistral.config import Experiment
from mistral.corpus import Plan, Unit, plan_units
from mistral.dataset import SEAL, seal, unit_names
from mistral.errors import ConfigError, DataError, ManifestError
from mistral.files import make_folder
from mistral.manifest import FileEntry, Manifest, Record, make_record
from mistral.packing import Packer, Stream
from mistral.progress import Progress
from mistral.shards import ShardFacts, locate_tokens, write_shard
from mistral.tokens import Tokenizer, read_tokenizer, write_tokenizer
from mistral.workspace import Workspace

MEGABYTE = 1_000_000
LEFTOVER_SECONDS = 3600


@dataclass(frozen=True)
class PreprocessSummary:
    """What the stage found and did."""

    dataset: str
    units: int
    recorded: int
    packed_now: int
    facts: dict[str, Any] | None  # of the sealed dataset; None while units are missing

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def as_text(self) -> str:
        """For people."""
        if self.facts is None:
            return f"{self.dataset}: {self.recorded} of {self.units} units recorded"
        parts = [
            f"{split} {totals['documents']:,} documents, {totals['tokens']:,} tokens"
            for split, totals in self.facts["splits"].items()
        ]
        skipped = ", ".join(f"{count} {reason}" for reason, count in self.facts["skipped"].items()) or "none"
        return f"{self.dataset}: whole; {'; '.join(parts)}; documents skipped: {skipped}"


@dataclass(frozen=True)
class Work:
    """What packing a unit needs besides the unit."""

    experiment: Experiment
    manifest: Manifest
    plan: Plan
    tokenizer: Tokenizer
    progress: Progress

    @property
    def dataset(self) -> str:
        """`<name>-<digest>`."""
        return self.experiment.data.dataset_name()


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

    Args:
        experiment: whose data section says what to read.
        workspace: where the shards go.
        progress: receives megabytes of source text.
        tasks: into how many tasks the units are cut.
        task: do only this one, counted from 0; all of them unless given.
        workers: threads of the tokenizer.

    Raises:
        DataError: the corpus cannot be read, or a split stays empty.
        ManifestError: the source changed since units were recorded.
    """
    manifest, dataset = Manifest(workspace), experiment.data.dataset_name()
    sealed = manifest.find("preprocess", (dataset, SEAL))
    plan = _plan(experiment, workspace, sealed, progress)
    if plan is None or sealed is not None:
        require_same_source(experiment, manifest, plan)
        facts = sealed.facts if sealed else None
        count = len(unit_names(manifest, dataset))
        progress.say(f"{dataset}: whole, nothing to preprocess")
        return PreprocessSummary(dataset, count, count, 0, facts)
    require_same_source(experiment, manifest, plan)
    os.environ.setdefault("RAYON_NUM_THREADS", str(workers))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    write_tokenizer(experiment, workspace.tokenizer(dataset))
    tokenizer = read_tokenizer(workspace.tokenizer(dataset))
    mine = list(plan.units) if task is None else tasks_of(plan.units, tasks, task)
    packed = pack_missing(Work(experiment, manifest, plan, tokenizer, progress), mine)
    recorded = unit_names(manifest, dataset)
    if len(recorded) < len(plan.units):
        return PreprocessSummary(dataset, len(plan.units), len(recorded), packed, None)
    records = [manifest.get("preprocess", (dataset, unit.name), "run preprocess again") for unit in plan.units]
    whole = seal(manifest, experiment, tokenizer, records)
    return PreprocessSummary(dataset, len(plan.units), len(recorded), packed, whole.facts)


def _plan(experiment: Experiment, workspace: Workspace, sealed: Record | None, progress: Progress) -> Plan | None:
    """The units; None if the source is gone but the dataset is whole."""
    try:
        return plan_units(experiment, workspace.sources(), fetch=sealed is None)
    except DataError as error:
        if sealed is None:
            raise
        progress.say(f"the source is not there any more ({str(error).splitlines()[0]}); its dataset is whole")
        return None


def require_same_source(experiment: Experiment, manifest: Manifest, plan: Plan | None) -> None:
    """Refuse a source whose files changed since units of it were recorded.

    Raises:
        ManifestError: names the units that differ.
    """
    if plan is None:
        return
    dataset, data = experiment.data.dataset_name(), experiment.data.model_dump(mode="json")
    planned = {unit.name: unit for unit in plan.units}
    lines = []
    for name in unit_names(manifest, dataset):
        record = manifest.get("preprocess", (dataset, name), "run preprocess again")
        unit = planned.get(name)
        if unit is None or unit.digest(data) != record.config:
            now = [asdict(piece) for piece in unit.pieces] if unit else []
            lines.append(f"  unit {name}: {describe_change(record.facts['pieces'], now)}")
    sealed = manifest.find("preprocess", (dataset, SEAL))
    if sealed is not None:
        added = [name for name in planned if name not in sealed.inputs]
        lines += [f"  unit {name}: new" for name in added]
    if lines:
        raise ManifestError(
            f"{dataset}: the source differs from the one that was recorded:\n" + "\n".join(lines[:10]) + "\n"
            "  put the files back, or give the new corpus another data.name"
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
    """The units of one task: contiguous groups of about equal bytes.

    Raises:
        ConfigError: there is no such task.
    """
    if task >= tasks:
        raise ConfigError(f"--task: found {task}, expected 0 to {tasks - 1} for {tasks} tasks; see --tasks")
    total, before, chosen = sum(unit.bytes() for unit in units), 0, []
    for unit in units:
        middle = before + unit.bytes() / 2
        if min(int(middle * tasks / max(total, 1)), tasks - 1) == task:
            chosen.append(unit)
        before += unit.bytes()
    return chosen


def pack_missing(work: Work, units: list[Unit]) -> int:
    """Pack and record the units that are not recorded; returns how many those were."""
    recorded = set(unit_names(work.manifest, work.dataset))
    left = [unit for unit in units if unit.name not in recorded]
    total, done = sum(unit.bytes() for unit in units), sum(unit.bytes() for unit in units if unit.name in recorded)
    work.progress.start(f"preprocess {work.dataset}", max(1, total // MEGABYTE), "MB", done // MEGABYTE)
    try:
        for unit in left:
            pack_unit(work, unit)
    finally:
        work.progress.finish()
    return len(left)


def pack_unit(work: Work, unit: Unit) -> None:
    """Read one unit, write its shards, and record it."""
    start, data = time.monotonic(), work.experiment.data
    folder = work.manifest.workspace.dataset(work.dataset)
    make_folder(folder)
    read = 0

    def advance(size: int) -> None:
        nonlocal read
        before, read = read, read + size
        work.progress.advance(read // MEGABYTE - before // MEGABYTE)

    with Packer(data, work.tokenizer, folder) as packer:
        packer.pack(unit, work.plan.paths, advance)
        streams = packer.streams.items()
        files = [write_split(work, split, unit.name, stream) for split, stream in streams if stream.tokens]
    for entry in files:
        remove_leftovers(work.manifest.workspace.inside(entry.path))
    facts = {
        "splits": {split: stream.facts() | offset_of(work, split, unit, stream) for split, stream in streams},
        "skipped": dict(sorted(packer.skipped.items())),
        "tokenizer_sha256": work.tokenizer.sha256,
        "pieces": [asdict(piece) for piece in unit.pieces],
        "seconds": time.monotonic() - start,
    }
    key, config = (work.dataset, unit.name), unit.digest(data.model_dump(mode="json"))
    work.manifest.publish(make_record("preprocess/unit", key, config=config, inputs={}, files=files, facts=facts))


def offset_of(work: Work, split: str, unit: Unit, stream: Stream) -> dict[str, int]:
    """Where the tokens begin in a shard's file, so that training maps thousands of shards without opening them."""
    path = work.manifest.workspace.shard(work.dataset, split, unit.name)
    return {"offset": locate_tokens(path).offset} if stream.tokens else {}


def remove_leftovers(shard: Path) -> None:
    """Remove what killed processes left beside a shard; a file that is newer may be another task's at work."""
    for path in shard.parent.glob(f".{shard.name}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < shard.stat().st_mtime - LEFTOVER_SECONDS:
                path.unlink()


def write_split(work: Work, split: str, unit: str, stream: Stream) -> FileEntry:
    """Write the shard of one split of a unit."""
    path = work.manifest.workspace.shard(work.dataset, split, unit)
    sha256, end_of_text_id = work.tokenizer.sha256, work.tokenizer.end_of_text_id
    facts = ShardFacts(sha256, end_of_text_id, split, unit, stream.tokens, len(stream.starts))
    write_shard(path, facts, stream.blocks(), stream.document_starts())
    return work.manifest.entry(path)
