"""calls of fsync, link, rename and rmtree -> what a power cut would leave: the bytes and the names that are durable.

Each call is looked at, and then made as it is: nothing stands in for the disk. Remembered is the state of a file or a
folder at its last fsync.
"""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


class Disk:
    """What of a folder is durable, and what got its name or its record, or was removed, too early."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        self._files: dict[int, bytes] = {}  # by inode: the bytes at the last fsync
        self._folders: dict[int, dict[str, int]] = {}  # by inode: the names in it at the last fsync, and their inodes
        self._monkeypatch = monkeypatch
        self.too_early: list[str] = []
        self.records: dict[Path, dict[str, Any]] = {}  # by their own files, in the order of their making
        self._look_at(os, "fsync", self._synced)
        self._look_at(os, "link", self._named)
        for call in ("rename", "replace"):
            self._look_at(os, call, self._moved)
        self._look_at(shutil, "rmtree", self._removed)

    def kinds(self) -> list[str]:
        """`train/weights`: what was recorded, in order."""
        return [record["kind"] for record in self.records.values()]

    def _look_at(self, module: ModuleType, name: str, look: Callable[..., None]) -> None:
        call = getattr(module, name)

        def look_and_call(*arguments: Any, **options: Any) -> Any:
            look(*arguments)
            return call(*arguments, **options)

        self._monkeypatch.setattr(module, name, look_and_call)

    def _synced(self, descriptor: int) -> None:
        status, path = os.fstat(descriptor), Path(f"/proc/self/fd/{descriptor}")
        if stat.S_ISDIR(status.st_mode):
            self._folders[status.st_ino] = {inner.name: inner.stat().st_ino for inner in path.iterdir()}
        else:
            self._files[status.st_ino] = path.read_bytes()

    def _named(self, source: Path, target: Path) -> None:
        """What gets its last name holds what it shall hold, and what a record tells of survives already."""
        source, target = Path(source), Path(target)
        inside = target.is_relative_to(self._root)
        if inside and not (self._whole_folder(source) if source.is_dir() else self.bytes_of(source) is not None):
            self.too_early.append(f"{target}: named before its bytes are durable")
        if inside and "manifest" in target.parts:
            record = json.loads(source.read_bytes())
            self.records[target] = record
            lost = [entry["path"] for entry in record["files"] if not self.survives(self._root / entry["path"])]
            self.too_early += [f"{target}: recorded before {path} is durable" for path in lost]

    def _moved(self, source: Path, target: Path) -> None:
        self._removed(Path(source))
        self._named(source, target)

    def _removed(self, folder: Path, *_: Any) -> None:
        """What a record tells of is there as long as the record may come back."""
        for path, record in self.records.items():
            told = any((self._root / entry["path"]).is_relative_to(folder) for entry in record["files"])
            if told and self.names(path):
                self.too_early.append(f"{folder}: removed before {path} is gone")

    def _whole_folder(self, folder: Path) -> bool:
        names = self._folders.get(folder.stat().st_ino)
        inner = list(folder.iterdir())
        return names == {path.name: path.stat().st_ino for path in inner} and all(map(self.bytes_of, inner))

    def bytes_of(self, path: Path) -> bytes | None:
        """The bytes of a file as it is now; None if they are not durable."""
        found = self._files.get(path.stat().st_ino)
        return found if found == path.read_bytes() else None

    def names(self, path: Path) -> bool:
        """Whether a file or folder would be found under its path after a power cut."""
        parents = [path, *path.parents]
        below = parents[: parents.index(self._root)]
        return all(
            one.name in (names := self._folders.get(one.parent.stat().st_ino, {}))
            and (not one.exists() or names[one.name] == one.stat().st_ino)
            for one in below
        )

    def survives(self, path: Path) -> bool:
        """Whether a file would be found after a power cut, with the bytes that it has."""
        return self.bytes_of(path) is not None and self.names(path)
