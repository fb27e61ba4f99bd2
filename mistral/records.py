"""manifest/ of a workspace -> all its records by place, and what lies there that is no record of this layout."""

import functools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mistral.config import Experiment
from mistral.dataset import SEAL
from mistral.errors import ManifestError
from mistral.files import digest_of
from mistral.manifest import Key, Manifest, Record
from mistral.workspace import Workspace, step_number

STAGES = ("preprocess", "train", "export")
STEP = re.compile(r"^step-\d{8}$")
DRIFT = re.compile(r"^step-\d{8}-[0-9a-f]{8}$")
EXPORT = re.compile(r"^checkpoint-(0|[1-9]\d*)$")
Unit = tuple[str, Key]  # stage and key


@dataclass(frozen=True)
class Records:
    """Records by place; None for one that cannot be read, which is told already, or was withdrawn since it was listed.

    The probe's sequences are held as their digest: those of 6,000 checkpoints would be a gigabyte.
    """

    workspace: Workspace
    found: Mapping[Unit, Record | None]

    def get(self, stage: str, *key: str) -> Record | None:
        """A readable record."""
        return self.found.get((stage, key))

    def exists(self, stage: str, *key: str) -> bool:
        """Whether a file lies there, readable or not."""
        return (stage, key) in self.found

    def readable(self) -> list[Record]:
        """All that can be read, by place."""
        return [record for _, record in sorted(self.found.items(), key=lambda item: item[0]) if record is not None]

    def of_kind(self, kind: str, run: str | None = None) -> list[Record]:
        """The readable records of a kind, of all runs or of one, by key."""
        return self._kinds.get((kind, run), [])

    def steps(self, run: str, kind: str = "weights") -> list[int]:
        """Steps of a run that have a record of a kind, readable or not, ascending."""
        return self._steps.get((run, kind), [])

    @functools.cached_property
    def _kinds(self) -> dict[tuple[str, str | None], list[Record]]:
        kinds: dict[tuple[str, str | None], list[Record]] = {}
        for record in self.readable():
            for run in (None, record.key[0]):
                kinds.setdefault((record.kind, run), []).append(record)
        return kinds

    @functools.cached_property
    def _steps(self) -> dict[tuple[str, str], list[int]]:
        steps: dict[tuple[str, str], list[int]] = {}
        for stage, key in sorted(self.found):
            if expected_kind(stage, key) in ("train/weights", "train/state"):
                steps.setdefault((key[0], key[1]), []).append(step_number(key[2]))
        return steps


def place(record: Record) -> str:
    """`train/weights alias-tiny-x21/weights/step-00000002`."""
    return f"{record.kind} {'/'.join(record.key)}"


def expected_kind(stage: str, key: Key) -> str | None:
    """The kind of the record that belongs in a place; None if none does."""
    match (stage, *key):
        case ("preprocess", _, name):
            return "preprocess/dataset" if name == SEAL else "preprocess/unit"
        case ("train", _, "begin" | "complete" as name):
            return f"train/{name}"
        case ("train", _, "weights" | "state" | "extend" as name, step) if STEP.match(step):
            return f"train/{name}"
        case ("train", _, "drift", name) if DRIFT.match(name):
            return "train/drift"
        case ("export", _, name) if EXPORT.match(name):
            return "export/checkpoint"
    return None


def read_records(manifest: Manifest, experiment: Experiment | None = None) -> tuple[Records, list[str]]:
    """Read every record of a workspace, or of one experiment's dataset and runs.

    Returns:
        the records; and one line for each file that is none, or cannot be read.
    """
    found: dict[Unit, Record | None] = {}
    problems: list[str] = []
    for path, stage, key in _files(manifest.workspace, experiment):
        kind = expected_kind(stage, key) if path.suffix == ".json" else None
        if kind is None:
            problems.append(
                f"{path}: found a file that is not a record of this layout, expected none; move it elsewhere"
            )
            continue
        try:
            record = manifest.find(stage, key)
            if record is not None and record.kind != kind:
                raise ManifestError(f"{path}: found a record of {record.kind}, expected one of {kind}; restore it")
            found[stage, key] = record and _slim(record)
        except ManifestError as error:
            problems.append(str(error))
            found[stage, key] = None
    return Records(manifest.workspace, found), problems


def _files(workspace: Workspace, experiment: Experiment | None) -> Iterator[tuple[Path, str, Key]]:
    """Path, stage and key of each file below manifest/, but for those that are being written."""
    root, wanted = workspace.manifest(), None
    if experiment is not None:
        wanted = {*experiment.dataset_names(), *map(experiment.run_name, experiment.seeds)}
    for folder, folders, names in os.walk(root):
        # What is recorded last is listed first, so that training which goes on leaves no link without its end:
        # exports before checkpoints, states before weights, and what these name after them.
        folders.sort(key=lambda name: (name in ("preprocess", "drift"), name))
        for name in sorted(names):
            path = Path(folder, name)
            stage, *key = path.relative_to(root).with_suffix("").parts
            others = wanted is not None and stage in STAGES and key and key[0] not in wanted
            if not others and not (name.startswith(".") and name.endswith(".tmp")):
                yield path, stage, tuple(key)


def _slim(record: Record) -> Record:
    probe = record.facts.get("probe")
    if not isinstance(probe, dict) or "sequences" not in probe:
        return record
    slim = {**probe, "sequences": digest_of(probe["sequences"])}
    return replace(record, facts={**record.facts, "probe": slim})
