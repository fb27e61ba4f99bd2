"""what is in the way -> a folder `set-aside`, where nothing uses it: data is never deleted because it looks wrong.

runs/<run>/set-aside/
  step-00000007-20261124T220530.123456Z/       the folder as it was
  step-00000007-20261124T220530.123456Z.json   where it was, why it was set aside, and the record that it had

Exported folders have their own, exports/<run>/set-aside/, as they may lie on another disk. Only the command `clean`
removes what is in there.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mistral.files import canonical_json, fsync_folder, publish_bytes, read_errors, read_json, storage_errors
from mistral.manifest import Manifest, Record
from mistral.workspace import Workspace

NOTE = ".json"


@dataclass(frozen=True)
class SetAside:
    """One thing that was set aside: its name in the workspace, where it was, why, and its size without the note."""

    path: str
    origin: str
    reason: str
    bytes: int


def set_aside(
    manifest: Manifest, path: Path, into: Path, reason: str, record: Record | None = None, *, copy: bool = False
) -> Path:
    """Move a folder or file that is in the way, and withdraw its record if it has one.

    The note that says why comes first, with a copy of the record; then the record goes, so that no record names files
    that are gone; then the folder moves. A process that dies in between leaves a folder without a record, which the
    next attempt sets aside.

    Args:
        manifest: whose workspace it is.
        path: what is in the way; may be gone already.
        into: a folder on the same file system.
        reason: why, for people.
        record: the record that names these files.
        copy: give a file a second name there, and leave it where it is.

    Returns:
        where it lies now.

    Raises:
        PathError: a link stands in the way; nothing was changed.
        StorageError: the file system refuses.
    """
    workspace = manifest.workspace
    origin = workspace.relative(path)
    workspace.refuse_links(into)
    target = into / f"{path.name}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    note = {"origin": origin, "reason": reason, "record": record and record.body()}
    publish_bytes(target.with_name(target.name + NOTE), canonical_json(note) + b"\n")
    if record is not None:
        manifest.remove(record.kind.partition("/")[0], record.key)
    with storage_errors(path), contextlib.suppress(FileNotFoundError):
        if copy:
            os.link(path, target)
        else:
            path.rename(target)
            fsync_folder(path.parent)
        fsync_folder(into)
    return target


def folders_of(workspace: Workspace, run: str) -> tuple[Path, Path]:
    """Where the things that were set aside of a run lie."""
    return workspace.set_aside(run), workspace.exports_set_aside(run)


def names_of(workspace: Workspace, run: str) -> list[str]:
    """Paths of what was set aside of a run, relative to the workspace, sorted; lists two folders and reads no file."""
    found: set[str] = set()
    for folder in folders_of(workspace, run):
        with read_errors(folder), contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            paths = [folder / entry.name.removesuffix(NOTE) for entry in entries if not entry.name.startswith(".")]
            found.update(path.relative_to(workspace.root).as_posix() for path in paths)
    return sorted(found)


def look(workspace: Workspace, run: str) -> Iterator[SetAside]:
    """What was set aside of a run, with its reason and its size."""
    for name in names_of(workspace, run):
        path = workspace.root / name
        note = _note(path.with_name(path.name + NOTE))
        yield SetAside(name, str(note.get("origin", "unknown")), str(note.get("reason", "unknown")), _bytes(path))


def _note(path: Path) -> dict[str, object]:
    """A note; empty if it is not there or damaged."""
    try:
        with read_errors(path):
            note = read_json(path)
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    paths = [path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)]
    total = 0
    for one in paths:
        with contextlib.suppress(FileNotFoundError):
            status = one.lstat()
            total += status.st_size if not one.is_dir() else 0
    return total
