"""workspace -> what was set aside, shown or removed for good."""

import contextlib
from dataclasses import asdict, dataclass
from typing import Any

from mistral.config import Experiment
from mistral.files import fsync_folder, remove_folder, storage_errors
from mistral.setaside import NOTE, SetAside, folders_of, look
from mistral.workspace import Workspace
from pipeline.status import run_names


@dataclass(frozen=True)
class CleanSummary:
    """What was set aside, and whether it is still there."""

    found: tuple[SetAside, ...]
    removed: bool

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def as_text(self) -> str:
        """For people."""
        lines = [f"{one.path}: {one.bytes / 1e6:,.1f} MB, was {one.origin}: {one.reason}" for one in self.found]
        total = f"{sum(one.bytes for one in self.found) / 1e6:,.1f} MB"
        count = f"{len(self.found)} thing{'' if len(self.found) == 1 else 's'} that had been set aside"
        verb = "removed" if self.removed else "would remove"
        return "\n".join([*lines, f"{verb} {count}, {total}" if lines else "nothing is set aside"])


def clean(experiment: Experiment | None, workspace: Workspace, *, dry_run: bool) -> CleanSummary:
    """Remove what was set aside of the runs of an experiment, or of all runs of a workspace.

    Args:
        experiment: whose runs; all unless given.
        workspace: where they are.
        dry_run: look only.

    Raises:
        PathError: a link stands in the way; nothing behind it is removed.
        StorageError: the file system refuses.
    """
    found, runs = [], run_names(experiment, workspace)
    for folder in (folder for run in runs for folder in folders_of(workspace, run)):  # before anything is removed
        workspace.refuse_links(folder)
    for run in runs:
        for one in look(workspace, run):
            found.append(one)
            if not dry_run:
                _remove(workspace, one)
    return CleanSummary(tuple(found), removed=not dry_run)


def _remove(workspace: Workspace, one: SetAside) -> None:
    """Remove a thing, and its note last: so that what is left of it by a dead process is still listed."""
    path = workspace.inside(one.path)
    with storage_errors(path), contextlib.suppress(FileNotFoundError):
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)
        path.with_name(path.name + NOTE).unlink()
        fsync_folder(path.parent)
