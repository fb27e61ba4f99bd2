"""workspace -> what is wrong with it: every record parsed, every file hashed, every lineage followed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mistral.config import Experiment
from mistral.errors import ManifestError
from mistral.manifest import Key, Manifest, Record
from mistral.progress import Progress
from mistral.workspace import Workspace, step_name, step_number

STAGES = ("preprocess", "train", "export")
HASHERS = 4


@dataclass(frozen=True)
class VerifyReport:
    """What was checked, and one line for each problem."""

    problems: list[str]
    records: int
    files: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def as_text(self) -> str:
        """For people."""
        checked = f"checked {self.records} records and {self.files} files, {self.bytes / 1e6:,.1f} MB"
        return "\n".join([*self.problems, f"{checked}: {len(self.problems) or 'no'} problems"])


@dataclass
class Audit:
    """The records of a workspace, by stage and key, and what is wrong with them."""

    manifest: Manifest
    records: dict[tuple[str, Key], Record] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def read(self, stage: str, key: Key) -> None:
        """Read one record; what is wrong with it is a finding."""
        try:
            record = self.manifest.find(stage, key)
        except ManifestError as error:
            self.problems.append(str(error))
            return
        if record is not None:
            self.records[stage, key] = record

    def expect(self, record: Record, name: str, stage: str, key: Key) -> None:
        """Check that an input of a record is the content of the record that should be there."""
        other, found = self.records.get((stage, key)), record.inputs.get(name)
        place = f"{record.kind} {'/'.join(record.key)}"
        if other is None:
            self.problems.append(f"{place}: made from {stage}/{'/'.join(key)}, which is not recorded")
        elif found != other.content:
            self.problems.append(
                f"{place}: its {name} is {str(found)[:12]}, expected {other.content[:12]}, the content of "
                f"{stage}/{'/'.join(key)}"
            )


def verify(
    workspace: Workspace, progress: Progress, experiment: Experiment | None = None, quick: bool = False
) -> VerifyReport:
    """Check every file of a workspace, or of one experiment, against its record, and the records against each other.

    Args:
        workspace: what to check.
        progress: receives megabytes.
        experiment: only its dataset and runs; everything unless given.
        quick: compare sizes and do not hash.
    """
    audit = Audit(Manifest(workspace))
    for stage, key in sorted(find_keys(workspace, experiment)):
        audit.read(stage, key)
    if not audit.records and not audit.problems:
        name = experiment.name if experiment else "any experiment"
        audit.problems.append(f"{workspace.root}: found no record of {name}, expected some; check --workspace")
    check_files(audit, progress, quick)
    for record in audit.records.values():
        check_lineage(audit, record)
    check_runs(audit)
    files = {entry.path: entry.bytes for record in audit.records.values() for entry in record.files}
    return VerifyReport(audit.problems, len(audit.records), len(files), sum(files.values()))


def find_keys(workspace: Workspace, experiment: Experiment | None) -> Iterator[tuple[str, Key]]:
    """Stage and key of every record file."""
    wanted = None
    if experiment is not None:
        wanted = {experiment.data.dataset_name(), *map(experiment.run_name, experiment.seeds)}
    for stage in STAGES:
        folder = workspace.manifest() / stage
        for path in folder.rglob("*.json") if folder.is_dir() else ():
            parts = path.relative_to(folder).with_suffix("").parts
            if not path.name.startswith(".") and (wanted is None or parts[0] in wanted):
                yield stage, parts


def check_files(audit: Audit, progress: Progress, quick: bool) -> None:
    """Hash the files of all records, several at a time."""
    records = list(audit.records.values())
    total = sum(entry.bytes for record in records for entry in record.files)
    progress.start("verify", max(1, total // 1_000_000), "MB")
    read = 0
    with ThreadPoolExecutor(HASHERS) as pool:
        for record, problems in zip(records, pool.map(lambda r: audit.manifest.damage(r, quick), records), strict=True):
            audit.problems += problems
            before, read = read, read + sum(entry.bytes for entry in record.files)
            progress.advance(read // 1_000_000 - before // 1_000_000)
    progress.finish()


def check_lineage(audit: Audit, record: Record) -> None:
    """Follow the inputs of one record."""
    name = record.key[0]
    if record.kind == "preprocess/dataset":
        for unit in record.inputs:
            audit.expect(record, unit, "preprocess", (name, unit))
    elif record.kind in ("train/weights", "train/state"):
        _check_checkpoint(audit, record)
    elif record.kind == "train/complete":
        begun = audit.records.get(("train", (name, "begin")))
        if begun:
            audit.expect(record, "weights", "train", (name, "weights", step_name(record.facts["steps"])))
    elif record.kind == "export/checkpoint":
        step = step_number(record.key[-1])
        audit.expect(record, "weights", "train", (name, "weights", step_name(step)))


def _check_checkpoint(audit: Audit, record: Record) -> None:
    run, kind, name = record.key
    step = step_number(name)
    begun = audit.records.get(("train", (run, "begin")))
    if begun is None:
        audit.problems.append(f"{record.kind} {run}/{name}: the beginning of the run is not recorded")
    elif record.config != begun.config or record.inputs.get("dataset") != begun.inputs["dataset"]:
        audit.problems.append(f"{record.kind} {run}/{name}: belongs to another config or dataset than {run} began with")
    steps = sorted(
        step_number(key[2]) for stage, key in audit.records if stage == "train" and key[:2] == (run, "weights")
    )
    before = [other for other in steps if other < step or (kind == "state" and other == step)]
    if before:
        parent = "parent" if kind == "weights" else "weights"
        audit.expect(record, parent, "train", (run, "weights", step_name(before[-1])))
    elif "parent" in record.inputs:
        audit.problems.append(f"{record.kind} {run}/{name}: the checkpoint that it descends from is not recorded")


def check_runs(audit: Audit) -> None:
    """Complete runs hold every scheduled step, and no two steps of a run are alike."""
    for (stage, key), record in list(audit.records.items()):
        if stage == "train" and record.kind == "train/begin" and ("train", (key[0], "complete")) in audit.records:
            for step in record.facts["scheduled_steps"]:
                if ("train", (key[0], "weights", step_name(step))) not in audit.records:
                    audit.problems.append(f"{key[0]}: complete, but its scheduled step {step} is not recorded")
    seen: dict[tuple[str, str], str] = {}
    for (stage, key), record in sorted(audit.records.items()):
        if stage != "train" or record.kind != "train/weights":
            continue
        for entry in record.files:
            if Path(entry.path).name == "model.safetensors":
                other = seen.setdefault((key[0], entry.sha256), entry.path)
                if other != entry.path:
                    audit.problems.append(f"{entry.path}: holds the same weights as {other}")
