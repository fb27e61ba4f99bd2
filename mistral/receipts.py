"""revisions that were compared with the Hub -> receipts: this commit holds that record, so it is not compared again.

What a commit holds never changes, and the Hub lists the newest commits of all branches of a repository in one answer. A
receipt is written only after all files of its commit were compared. Without a receipt, or with one that is damaged or
of another record, the branch is compared file by file.
"""

import json
import os
from collections import defaultdict
from pathlib import Path

from mistral.files import digest_of, make_folder, storage_errors
from mistral.manifest import Record


class Receipts:
    """The receipts of a workspace.

    Args:
        path: a JSON line for each: [place, content of the record, commit, digest of these]. The last one of a place
            counts.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, tuple[str, str]] = {}
        self._held: dict[str, dict[str, str]] = defaultdict(dict)  # by commit: by place, the record it is said to hold
        data = path.read_bytes() if path.exists() else b""
        for line in data.splitlines():
            if (read := _read(line)) is not None:
                self._note(*read)

    def proves(self, place: str, record: Record, commit: str | None) -> bool:
        """Whether a commit is known to hold a record; `place` is `<address of the repository>@<branch>`.

        A commit that is said to hold two records is known to hold neither.
        """
        return (
            commit is not None
            and self._known.get(place) == (record.content, commit)
            and set(self._held[commit].values()) == {record.content}
        )

    def _note(self, place: str, content: str, commit: str) -> None:
        _, former = self._known.get(place, ("", ""))
        self._held[former].pop(place, None)
        self._known[place] = (content, commit)
        self._held[commit][place] = content

    def write(self, place: str, record: Record, commit: str) -> None:
        """Note that a commit was compared with a record, file by file, and holds it."""
        if self.proves(place, record, commit):
            return
        entry = [place, record.content, commit]
        make_folder(self._path.parent)
        line = json.dumps([*entry, digest_of(entry)]) + "\n"
        with storage_errors(self._path):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:  # in one piece, after the end of a line that a kill cut short
                os.write(descriptor, ("\n" + line).encode() if _is_cut_short(self._path) else line.encode())
            finally:
                os.close(descriptor)
        self._note(place, record.content, commit)


def _read(line: bytes) -> tuple[str, str, str] | None:
    """A receipt; None if it is not whole."""
    try:
        place, content, commit, digest = json.loads(line)
        whole = digest == digest_of([place, content, commit])
    except (ValueError, TypeError):
        return None
    return (place, content, commit) if whole and all(isinstance(t, str) for t in (place, content, commit)) else None


def _is_cut_short(path: Path) -> bool:
    """Whether a file does not end with the end of a line."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
