"""manifest/ of a workspace -> all its records by place, and what lies there that is no record of this layout."""

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mistral.config import Experiment
from mistral.errors import ManifestError, StorageError
from mistral.files import digest_of
from mistral.kinds import KINDS, kind_of
from mistral.manifest import Key, Manifest, Record
from mistral.workspace import Workspace, step_number

STAGES = {kind.stage for kind in KINDS}
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

    def keys(self, kind: str, name: str) -> list[Key]:
        """Keys of the records of a kind, readable or not, of one run or dataset."""
        return self._keys.get((kind, name), [])

    @functools.cached_property
    def _kinds(self) -> dict[tuple[str, str | None], list[Record]]:
        kinds: dict[tuple[str, str | None], list[Record]] = {}
        for record in self.readable():
            for run in (None, record.key[0]):
                kinds.setdefault((record.kind, run), []).append(record)
        return kinds

    @functools.cached_property
    def _keys(self) -> dict[tuple[str, str], list[Key]]:
        keys: dict[tuple[str, str], list[Key]] = {}
        for stage, key in sorted(self.found):
            if (kind := kind_of(stage, key)) is not None:
                keys.setdefault((kind.name, key[0]), []).append(key)
        return keys

    @functools.cached_property
    def _steps(self) -> dict[tuple[str, str], list[int]]:
        kinds = {"train/weights": "weights", "train/state": "state"}
        return {
            (run, kinds[kind]): [step_number(key[-1]) for key in keys]
            for (kind, run), keys in self._keys.items()
            if kind in kinds
        }


def place(record: Record) -> str:
    """`train/weights alias-tiny-x21/weights/step-00000002`."""
    return f"{record.kind} {'/'.join(record.key)}"


def updates_of(checkpoint: Record) -> int:
    """How often the optimizer had changed the weights; fp16 skips a step whose gradients overflow."""
    updates: int = checkpoint.facts.get("updates", checkpoint.facts["step"])
    return updates


def follows(records: Records, record: Record, name: str, stage: str, *key: str) -> Iterator[str]:
    """An input of a record is the content of the record that should be there."""
    other, found = records.get(stage, *key), record.inputs.get(name)
    if other is not None and found != other.content:
        expected = f"{other.content[:12]}, the content of {stage}/{'/'.join(key)}"
        yield f"{place(record)}: its {name} is {str(found)[:12]}, expected {expected}"
    if not records.exists(stage, *key):
        yield f"{place(record)}: made from {stage}/{'/'.join(key)}, which is not recorded"


def read_records(manifest: Manifest, experiment: Experiment | None = None) -> tuple[Records, list[str]]:
    """Read every record of a workspace, or of one experiment's dataset and runs.

    Returns:
        the records; and one line for each file that is none, or cannot be read.
    """
    found: dict[Unit, Record | None] = {}
    problems: list[str] = []
    for path, stage, key in _files(manifest.workspace, experiment):
        kind = kind_of(stage, key) if path.suffix == ".json" else None
        if kind is None:
            problems.append(
                f"{path}: found a file that is not a record of this layout, expected none; move it elsewhere"
            )
            continue
        try:
            record = manifest.find(stage, key)
            if record is not None and record.kind != kind.name:
                raise ManifestError(f"{path}: found a record of {record.kind}, expected one of {kind.name}; restore it")
            found[stage, key] = record and _slim(record)
        except (ManifestError, StorageError) as error:
            problems.append(str(error))
            found[stage, key] = None
    return Records(manifest.workspace, found), problems


def _files(workspace: Workspace, experiment: Experiment | None) -> Iterator[tuple[Path, str, Key]]:
    """Path, stage and key of each file below manifest/, but for those that are being written."""
    root, wanted = workspace.manifest(), None
    if experiment is not None:
        wanted = {experiment.name, *experiment.dataset_names(), *map(experiment.run_name, experiment.seeds)}
    for folder, folders, names in os.walk(root, onerror=_refuse_hidden):
        # What is recorded last is listed first, so that training which goes on leaves no link without its end:
        # exports before checkpoints, states before weights, and what these name after them.
        folders.sort(key=lambda name: (name in ("preprocess", "cohort", "drift"), name))
        for name in sorted(names):
            path = Path(folder, name)
            stage, *key = path.relative_to(root).with_suffix("").parts
            others = wanted is not None and stage in STAGES and key and key[0] not in wanted
            if not others and not (name.startswith(".") and name.endswith(".tmp")):
                yield path, stage, tuple(key)


def _refuse_hidden(error: OSError) -> None:
    """Records that may not be listed are not taken for absent ones; a folder that has gone meanwhile is."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _slim(record: Record) -> Record:
    probe = record.facts.get("probe")
    if not isinstance(probe, dict) or "sequences" not in probe:
        return record
    slim = {**probe, "sequences": digest_of(probe["sequences"])}
    return replace(record, facts={**record.facts, "probe": slim})
