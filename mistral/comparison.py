"""a record of an exported folder, and what the Hub lists of a commit -> what differs, one line a file."""

import hashlib
from collections.abc import Callable

from mistral.manifest import FileEntry, Manifest, Record
from mistral.remote import OWN, About, RemoteFile, Tree

LARGE_FILE = "filter=lfs diff=lfs merge=lfs -text"  # what the Hub adds to its own file for a large one, after its name


class Expected:
    """What the records say that a revision holds; remembers the hashes of small files that many revisions share."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._blobs: dict[str, str] = {}

    def files(self, record: Record) -> dict[str, FileEntry]:
        """The files of a revision, by their paths in the repository."""
        return {entry.path.rpartition("/")[2]: entry for entry in record.files}

    def differences(self, record: Record, tree: Tree) -> list[str]:
        """What differs between a record and what the Hub has, without the Hub's own file."""
        files, found = self.files(record), contents(tree)
        problems = [f"{name}: missing" for name in sorted(files.keys() - found.keys())]
        problems += [f"{name}: found a file that is not recorded" for name in sorted(found.keys() - files.keys())]
        for name in sorted(files.keys() & found.keys()):
            problems += self._difference(name, files[name], found[name])
        return problems

    def _difference(self, name: str, entry: FileEntry, found: RemoteFile) -> list[str]:
        if found.sha256 is not None:
            expected, hashed, kind = entry.sha256, found.sha256, "sha256"
        elif found.bytes != entry.bytes:
            return [f"{name}: found {found.bytes} bytes, expected {entry.bytes}"]
        else:
            blob = self._blob_sha1(entry)
            if blob is None:
                return [f"{name}: cannot be compared, as {entry.path} is not the recorded file; restore it"]
            expected, hashed, kind = blob, found.blob_sha1, "git sha1"
        return [] if expected == hashed else [f"{name}: found {kind} {hashed[:12]}, expected {expected[:12]}"]

    def _blob_sha1(self, entry: FileEntry) -> str | None:
        """git's hash of a recorded file, which the Hub tells for small ones; None if the file is not as recorded."""
        if entry.sha256 not in self._blobs:
            path = self._manifest.workspace.inside(entry.path)
            data = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(data).hexdigest() != entry.sha256:
                return None
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
            self._blobs[entry.sha256] = blob.hexdigest()
        return self._blobs[entry.sha256]


class Attributes:
    """The Hub's own file, `.gitattributes`, which says how git keeps the others: as the repository began with it.

    Args:
        first: it in the first commit; None if there is none.
        read: the text of it, by its hash, in a commit.
    """

    def __init__(self, first: RemoteFile | None, first_commit: str, read: Callable[[str], str]) -> None:
        self._first, self._first_commit, self._read = first, first_commit, read
        self._texts: dict[str | None, str] = {None: ""}

    def differences(self, record: Record, tree: Tree, commit: str) -> list[str]:
        """What differs from the first commit, except that the Hub adds a line for each large file that is recorded."""
        found = tree.get(OWN)
        if found == self._first:
            return []
        if found is None:
            return [f"{OWN}: missing"]
        before, after = (self._lines(one, at) for one, at in ((self._first, self._first_commit), (found, commit)))
        large = {f"{entry.path.rpartition('/')[2]} {LARGE_FILE}" for entry in record.files}
        if after[: len(before)] == before and set(after[len(before) :]) <= large:
            return []
        return [f"{OWN}: found {found.bytes} bytes that differ from those that the repository began with"]

    def _lines(self, file: RemoteFile | None, commit: str) -> list[str]:
        key = file.blob_sha1 if file else None
        if key not in self._texts:
            self._texts[key] = self._read(commit)
        return self._texts[key].splitlines()


def contents(tree: Tree) -> Tree:
    """What people put there: all but the Hub's own file."""
    return {name: file for name, file in tree.items() if name != OWN}


def renamed(about: About, repository: str) -> str | None:
    """What is told of a repository that the Hub has under another name now; it answers for both names."""
    if about.name.lower() == repository.lower():
        return None
    return (
        f"{repository}: found it renamed to {about.name}, expected the name that its model cards tell; rename it back "
        "on the Hub, and run the same command again"
    )
