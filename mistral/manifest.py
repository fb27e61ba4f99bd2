"""finished units of work -> one immutable JSON record each; planned minus recorded = what is left to do.

A record is written last, once, by one writer: as a temporary file beside its target, fsynced, linked into place with
link(2), which never overwrites. A record that exists means that the work is whole. There is no file that two tasks
append to, no database, and nothing is ordered by a clock.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mistral.errors import ManifestError, PathError
from mistral.files import (
    canonical_json,
    digest_of,
    fsync_folder,
    publish_bytes,
    read_errors,
    read_json,
    sha256_of,
    temporary_beside,
)
from mistral.kinds import kind_of
from mistral.provenance import made_by
from mistral.workspace import Workspace

SCHEMA = 1
Key = tuple[str, ...]


@dataclass(frozen=True)
class FileEntry:
    """One file of a finished unit: path relative to the workspace, size in bytes, sha256 in hexadecimal."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """One finished unit of work.

    `content` is the sha256 over kind, key, config, inputs and files: what was made, not when or where. `digest` is
    the sha256 over everything else in the record.
    """

    kind: str
    key: Key
    config: str
    inputs: dict[str, str]
    files: tuple[FileEntry, ...]
    facts: dict[str, Any]
    made_by: dict[str, Any]
    created_at: str
    content: str
    digest: str
    schema: int = SCHEMA

    def body(self) -> dict[str, Any]:
        """The record as JSON writes it."""
        return dataclasses.asdict(self) | {"key": list(self.key), "files": [dataclasses.asdict(f) for f in self.files]}


def make_record(
    kind: str,
    key: Key,
    *,
    config: str,
    inputs: dict[str, str],
    files: Sequence[FileEntry],
    facts: dict[str, Any],
    **maker: Any,
) -> Record:
    """A record of work that this process has just finished.

    Args:
        kind: stage and sort of unit, e.g. `train/weights`.
        key: what stands after the kind in the record's path, e.g. `(run, "weights", "step-00001000")`.
        config: digest of the config sections that decided the content.
        inputs: name -> content digest of the records it was made from.
        files: what was written.
        facts: what the stage measured.
        maker: more for `made_by`.
    """
    files = tuple(sorted(files, key=lambda entry: entry.path))
    content = digest_of(_content(kind, key, config, inputs, files))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    draft = Record(kind, key, config, dict(inputs), files, facts, made_by(**maker), now, content, digest="")
    return dataclasses.replace(draft, digest=_digest(draft.body()))


def with_maker(record: Record, facts: dict[str, Any], maker: dict[str, Any]) -> Record:
    """The same content with other facts and another `made_by`."""
    draft = dataclasses.replace(record, facts=facts, made_by=maker, digest="")
    return dataclasses.replace(draft, digest=_digest(draft.body()))


def _content(kind: str, key: Key, config: str, inputs: dict[str, str], files: Iterable[FileEntry]) -> dict[str, Any]:
    listed = [dataclasses.asdict(entry) for entry in files]
    return {"kind": kind, "key": list(key), "config": config, "inputs": inputs, "files": listed}


def _digest(body: dict[str, Any]) -> str:
    return digest_of({name: value for name, value in body.items() if name != "digest"})


def parse_record(body: Any, origin: Path) -> Record:
    """Rebuild a record and check both of its digests.

    Raises:
        ManifestError: a field is missing, or a digest does not match.
    """
    if isinstance(body, dict) and body.get("schema") != SCHEMA:
        raise ManifestError(
            f"{origin}: found schema {body.get('schema')}, expected {SCHEMA}; use the version of this program that "
            "wrote it"
        )
    try:
        files = tuple(FileEntry(**entry) for entry in body["files"])
        record = Record(**{**body, "key": tuple(body["key"]), "files": files})
        whole = record.digest == _digest(body)
        same = record.content == digest_of(_content(record.kind, record.key, record.config, record.inputs, files))
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise ManifestError(f"{origin}: found something that is not a record ({error}); {_ADVICE}") from None
    if not whole or not same:
        raise ManifestError(f"{origin}: found a record whose digest does not match its content; {_ADVICE}")
    return record


_ADVICE = "it was changed by hand or damaged: restore it, or remove it and run its stage again"


@dataclass(frozen=True)
class Manifest:
    """The records of one workspace."""

    workspace: Workspace

    def path(self, stage: str, key: Key) -> Path:
        """Where the record of a unit lies.

        Raises:
            PathError: a part of the key is no plain name.
        """
        if not key:
            raise PathError(f"found no key below {stage}, expected the name of a unit")
        return self._place(stage, *key[:-1], f"{key[-1]}.json")

    def _place(self, *parts: str) -> Path:
        return self.workspace.inside("/".join([self.workspace.manifest().name, *map(_plain, parts)]))

    def find(self, stage: str, key: Key) -> Record | None:
        """The record of a unit, or None if the unit is not finished.

        Raises:
            ManifestError: the record is damaged, or is another unit's.
            StorageError: the record cannot be read, which says nothing about it.
        """
        path = self.path(stage, key)
        try:
            with read_errors(path):
                body = read_json(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ManifestError(f"{path}: {error.strerror}, expected a record; move it elsewhere") from None
        except ValueError as error:
            raise ManifestError(f"{path}: found text that is not JSON ({error}); {_ADVICE}") from None
        record = parse_record(body, path)
        if record.key != key or record.kind.partition("/")[0] != stage:
            raise ManifestError(f"{path}: found the record of {record.kind} {record.key}; {_ADVICE}")
        return record

    def get(self, stage: str, key: Key, advice: str) -> Record:
        """The record of a unit that must be finished.

        Raises:
            ManifestError: it is not there; `advice` says what to do.
        """
        record = self.find(stage, key)
        if record is None:
            raise ManifestError(f"{self.path(stage, key)}: found no record, expected a finished unit\n  {advice}")
        return record

    def names(self, stage: str, key: Key = ()) -> list[str]:
        """Names of the recorded units below a key, sorted; reads one folder and no record."""
        folder = self._place(stage, *key)
        try:
            with read_errors(folder), os.scandir(folder) as entries:
                return sorted(e.name[:-5] for e in entries if e.name.endswith(".json") and not e.name.startswith("."))
        except FileNotFoundError:
            return []

    def publish(self, record: Record) -> Record:
        """Commit a finished unit; its files must be durable already.

        If the unit was recorded before, the same content is required and the earlier record stands.

        Raises:
            ManifestError: the earlier record has another content; shows the difference.
        """
        stands = self.publish_first(record)
        if stands.content != record.content:
            path = self.path(record.kind.partition("/")[0], record.key)
            raise ManifestError(
                f"{path}: the work was done again and gave another result:\n{difference(stands, record)}\n"
                "  the same inputs must give the same bytes (docs/reproducibility.md says when they do). The earlier "
                "result stands."
            )
        return stands

    def publish_first(self, record: Record) -> Record:
        """Commit a record unless one has its place already; returns the one that stands.

        Of several processes that publish at once, exactly one has its record stand.

        Raises:
            ValueError: no row of `mistral.kinds` has this kind in this place.
        """
        stage = record.kind.partition("/")[0]
        path, kind = self.path(stage, record.key), kind_of(stage, record.key)
        if kind is None or kind.name != record.kind:
            raise ValueError(
                f"found a record {record.kind} {record.key}, expected one of the table in mistral/kinds.py"
            )
        if publish_bytes(path, canonical_json(record.body()) + b"\n"):
            return record
        return self.get(stage, record.key, "the file system lost a record that was just there: run again")

    def remove(self, stage: str, key: Key) -> None:
        """Withdraw a record: of a state that is no longer needed, or of an export for another organization."""
        path = self.path(stage, key)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            fsync_folder(path.parent)

    def remove_record(self, record: Record) -> None:
        """Withdraw exactly this record: one that another process has published in its place meanwhile stays."""
        path = self.path(record.kind.partition("/")[0], record.key)
        moved = temporary_beside(path)
        with contextlib.suppress(FileNotFoundError):
            path.rename(moved)
            if parse_record(read_json(moved), moved).digest != record.digest:
                with contextlib.suppress(FileExistsError):
                    path.hardlink_to(moved)
            moved.unlink()
            fsync_folder(path.parent)

    def damage(self, record: Record, quick: bool = False) -> list[str]:
        """How the files of a record differ from it, one line each; compares sizes only if `quick`.

        A file that cannot be read is not damaged: nothing is known about it.

        Raises:
            StorageError: a file cannot be read; names it and the errno.
            PathError: the path of a file is refused.
        """
        return [problem for entry in record.files if (problem := self._damage_of(entry, quick))]

    def _damage_of(self, entry: FileEntry, quick: bool) -> str | None:
        path = self.workspace.inside(entry.path)
        try:
            with read_errors(path):
                if (size := path.stat().st_size) != entry.bytes:
                    return f"{entry.path}: found {size} bytes, expected {entry.bytes}"
                if not quick and (found := sha256_of(path)) != entry.sha256:
                    return f"{entry.path}: found sha256 {found}, expected {entry.sha256}"
        except OSError as error:  # there is no such file, or it is a folder
            return f"{entry.path}: {error.strerror}, expected {entry.bytes} bytes"
        return None

    def entry(self, path: Path, sha256: str | None = None) -> FileEntry:
        """Describe a file that lies in the workspace; hashes it unless its sha256 is known."""
        return FileEntry(self.workspace.relative(path), path.stat().st_size, sha256 or sha256_of(path))


def _plain(part: str) -> str:
    """One part of a key, which is the name of a file or folder."""
    if not part or part.startswith(".") or "/" in part or "\0" in part:
        raise PathError(f"found {part!r} in a key, expected a plain name without slashes or leading dots; rename it")
    return part


def difference(earlier: Record, later: Record) -> str:
    """What differs in the content of two records of one unit, one line each."""
    lines = []
    if earlier.config != later.config:
        lines.append(f"  config: recorded {earlier.config[:12]}, now {later.config[:12]}")
    for name in sorted(earlier.inputs.keys() | later.inputs.keys()):
        if (a := earlier.inputs.get(name)) != (b := later.inputs.get(name)):
            lines.append(f"  input {name}: recorded {str(a)[:12]}, now {str(b)[:12]}")
    before, after = ({entry.path: entry for entry in record.files} for record in (earlier, later))
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            hashes = [entry.sha256[:12] if entry else "absent" for entry in (before.get(path), after.get(path))]
            lines.append(f"  {path}: recorded {hashes[0]}, now {hashes[1]}")
    return "\n".join(lines)


def missing(planned: Sequence[str], recorded: Iterable[str]) -> list[str]:
    """Work to do: planned minus recorded, in planned order."""
    done = set(recorded)
    return [name for name in planned if name not in done]
