"""workspace -> what is wrong with it: every record parsed, every file hashed, every lineage followed."""

import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mistral.config import Experiment
from mistral.dataset import SEAL
from mistral.errors import ManifestError, PathError
from mistral.manifest import FileEntry, Key, Manifest, Record
from mistral.progress import Progress
from mistral.workspace import Workspace, step_name, step_number

STAGES = ("preprocess", "train", "export")
HASHERS = 4
UNIT_NAME = re.compile(r"^(step-\d{8}|checkpoint-\d+)$")  # of weights, states and exports


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


CHECKPOINTS = {"train/weights": 3, "train/state": 3, "export/checkpoint": 2}  # kind -> parts of its key


@dataclass
class Audit:
    """The records of a workspace, by stage and key, and what is wrong with them."""

    manifest: Manifest
    records: dict[tuple[str, Key], Record] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unreadable: set[tuple[str, Key]] = field(default_factory=set)  # told already; nothing follows from them

    def read(self, stage: str, key: Key) -> None:
        """Read one record; what is wrong with it is a finding."""
        try:
            record = self.manifest.find(stage, key)
        except ManifestError as error:
            self.problems.append(str(error))
            self.unreadable.add((stage, key))
            return
        if record is None:
            return
        if record.kind in CHECKPOINTS and (len(key) != CHECKPOINTS[record.kind] or not UNIT_NAME.match(key[-1])):
            self.problems.append(f"{self.manifest.path(stage, key)}: found a {record.kind} that is no step; remove it")
            return
        self.records[stage, key] = record

    def steps(self, run: str) -> list[int]:
        """Steps of a run whose weights are recorded, ascending."""
        keys = [key for stage, key in (*self.records, *self.unreadable) if stage == "train" and len(key) == 3]
        return sorted(step_number(key[2]) for key in keys if key[:2] == (run, "weights") and UNIT_NAME.match(key[2]))

    def expect(self, record: Record, name: str, stage: str, key: Key) -> None:
        """Check that an input of a record is the content of the record that should be there."""
        if (stage, key) in self.unreadable:
            return
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
        check_places(audit, record)
        check_lineage(audit, record)
    check_runs(audit)
    files = {entry.path: entry.bytes for record in audit.records.values() for entry in record.files}
    return VerifyReport(audit.problems, len(audit.records), len(files), sum(files.values()))


def find_keys(workspace: Workspace, experiment: Experiment | None) -> Iterator[tuple[str, Key]]:
    """Stage and key of every record file."""
    wanted = None
    if experiment is not None:
        wanted = {*experiment.dataset_names(), *map(experiment.run_name, experiment.seeds)}
    for stage in STAGES:
        folder = workspace.manifest() / stage
        for path in folder.rglob("*.json") if folder.is_dir() else ():
            parts = path.relative_to(folder).with_suffix("").parts
            if not path.name.startswith(".") and (wanted is None or parts[0] in wanted):
                yield stage, parts


def check_files(audit: Audit, progress: Progress, quick: bool) -> None:
    """Hash the files of all records, several at a time; one with two names (an export's weights) is read once."""
    groups: dict[tuple[object, ...], list[FileEntry]] = defaultdict(list)
    for entry in (entry for record in audit.records.values() for entry in record.files):
        groups[(*_identity(audit.manifest, entry), entry.bytes, entry.sha256)].append(entry)
    total = sum(group[0].bytes for group in groups.values())
    progress.start("verify", max(1, total // 1_000_000), "MB")
    read, problems = 0, []
    try:
        with ThreadPoolExecutor(HASHERS) as pool:
            jobs = {pool.submit(_damage, audit.manifest, group, quick): group[0].bytes for group in groups.values()}
            for job in as_completed(jobs):
                problems += job.result()
                before, read = read, read + jobs[job]
                progress.advance(read // 1_000_000 - before // 1_000_000)
    finally:
        progress.finish()
    audit.problems += sorted(set(problems))


def _identity(manifest: Manifest, entry: FileEntry) -> tuple[object, ...]:
    try:
        status = manifest.workspace.inside(entry.path).stat()
    except (OSError, PathError):
        return (entry.path,)
    return (status.st_dev, status.st_ino)


def _damage(manifest: Manifest, group: list[FileEntry], quick: bool) -> list[str]:
    """What is wrong with one file, for each of its names."""
    empty = Record("", (), "", {}, (), {}, {}, "", "", "")
    first = manifest.damage(replace(empty, files=(group[0],)), quick)
    return first and manifest.damage(replace(empty, files=tuple(group)), quick)


def check_places(audit: Audit, record: Record) -> None:
    """Files lie where files of their kind belong: a record cannot pass another run's file off as its own."""
    workspace, name, last = audit.manifest.workspace, record.key[0], record.key[-1]
    homes = {
        "preprocess/unit": lambda: workspace.dataset(name),
        "preprocess/dataset": lambda: workspace.dataset(name),
        "train/weights": lambda: workspace.weights(name, step_number(last)),
        "train/state": lambda: workspace.state(name, step_number(last)),
        "export/checkpoint": lambda: workspace.export(name, step_number(last)),
    }
    if record.kind not in homes:
        return
    home = homes[record.kind]().relative_to(workspace.root).as_posix()
    for entry in record.files:
        if not entry.path.startswith(f"{home}/"):
            audit.problems.append(
                f"{entry.path}: found in the record {'/'.join(record.key)}, expected a file in {home}"
            )


def check_lineage(audit: Audit, record: Record) -> None:
    """Follow the inputs of one record."""
    name = record.key[0]
    if record.kind == "preprocess/dataset":
        recorded = {key[1] for stage, key in audit.records if stage == "preprocess" and key[0] == name}
        for unit in sorted({*record.inputs, *recorded} - {SEAL}):
            audit.expect(record, unit, "preprocess", (name, unit))
    elif record.kind == "train/begin":
        _check_dataset(audit, record)
    elif record.kind in ("train/weights", "train/state"):
        _check_checkpoint(audit, record)
        _check_drift(audit, record)
    elif record.kind == "train/drift":
        audit.expect(record, "begin", "train", (name, "begin"))
        _check_drift(audit, record)
    elif record.kind == "train/complete":
        _check_run_of(audit, record)
        audit.expect(record, "weights", "train", (name, "weights", step_name(record.facts["steps"])))
    elif record.kind == "export/checkpoint":
        begun = _check_run_of(audit, record, config=False)
        audit.expect(record, "weights", "train", (name, "weights", step_name(step_number(record.key[-1]))))
        if begun and record.inputs.get("dataset") != begun.inputs.get("dataset"):
            audit.problems.append(f"{_place(record)}: made with another dataset than {name} began with")


def _place(record: Record) -> str:
    return f"{record.kind} {'/'.join(record.key)}"


def _check_dataset(audit: Audit, begun: Record) -> None:
    """A run began with a dataset whose seal is recorded."""
    seals = [record.content for record in audit.records.values() if record.kind == "preprocess/dataset"]
    damaged = any(stage == "preprocess" and key[-1] == SEAL for stage, key in audit.unreadable)
    if begun.inputs.get("dataset") not in seals and not damaged:
        found = str(begun.inputs.get("dataset"))[:12]
        known = ", ".join(content[:12] for content in seals) or "none"
        audit.problems.append(f"{_place(begun)}: its dataset is {found}, expected one that is recorded: {known}")


def _check_run_of(audit: Audit, record: Record, config: bool = True) -> Record | None:
    """The record of the run's beginning; that it is missing, or has another config, is a finding."""
    at = ("train", (record.key[0], "begin"))
    begun = audit.records.get(at)
    if begun is None and at not in audit.unreadable:
        audit.problems.append(f"{_place(record)}: the beginning of the run is not recorded")
    if begun and config and record.config != begun.config:
        audit.problems.append(f"{_place(record)}: belongs to another config than {record.key[0]} began with")
    return begun


def _check_checkpoint(audit: Audit, record: Record) -> None:
    run, kind, name = record.key
    step = step_number(name)
    begun = _check_run_of(audit, record)
    if begun and record.inputs.get("dataset") != begun.inputs.get("dataset"):
        audit.problems.append(f"{_place(record)}: belongs to another dataset than {run} began with")
    before = [other for other in audit.steps(run) if other < step or (kind == "state" and other == step)]
    parent = "parent" if kind == "weights" else "weights"
    if before:
        audit.expect(record, parent, "train", (run, "weights", step_name(before[-1])))
    elif parent in record.inputs:
        audit.problems.append(f"{_place(record)}: the checkpoint that it descends from is not recorded")


def _check_drift(audit: Audit, record: Record) -> None:
    """A change of software or hardware that a record names is recorded."""
    run, named = record.key[0], record.inputs.get("drift")
    changes = {r.content for (stage, key), r in audit.records.items() if stage == "train" and key[:2] == (run, "drift")}
    unreadable = any(key[:2] == (run, "drift") for _, key in audit.unreadable)
    if named is not None and named not in changes and not unreadable:
        audit.problems.append(f"{_place(record)}: its drift is {named[:12]}, which is not recorded")


def check_runs(audit: Audit) -> None:
    """Complete runs hold every scheduled step, and no two steps of a run are alike."""
    for (stage, key), record in list(audit.records.items()):
        if stage == "train" and record.kind == "train/begin" and ("train", (key[0], "complete")) in audit.records:
            for step in record.facts["scheduled_steps"]:
                at = ("train", (key[0], "weights", step_name(step)))
                if at not in audit.records and at not in audit.unreadable:
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
