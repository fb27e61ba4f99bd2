"""names of datasets, runs and steps -> paths: the one place that knows how a workspace is laid out.

workspace/
  manifest/<stage>/<...key...>.json
  data/<dataset>/<split>/00017.h5    data/<dataset>/tokenizer/
  runs/<run>/config.yaml metrics.jsonl checkpoints/step-00001000/ state/step-00001000/ tensorboard/
  runs/<run>/set-aside/    exports/<run>/set-aside/    what was in the way: nothing uses it, `clean` removes it
  exports/<run>/checkpoint-1000/
  published/<experiment>/models.json README.md   published/turns/00000123   published/receipts
  jobs/<stage>/<submission>/    jobs/attempts/<job>/
"""

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from mistral.errors import PathError
from mistral.files import read_errors

SET_ASIDE = "set-aside"


@dataclass(frozen=True)
class Workspace:
    """A folder on a shared file system in which the stages meet."""

    root: Path

    def manifest(self) -> Path:
        """The records."""
        return self.root / "manifest"

    def dataset(self, dataset: str) -> Path:
        """Shards and tokenizer of one dataset."""
        return self.root / "data" / dataset

    def shard(self, dataset: str, split: str, unit: str) -> Path:
        """One HDF5 file of tokens."""
        return self.dataset(dataset) / split / f"{unit}.h5"

    def tokenizer(self, dataset: str) -> Path:
        """The folder with tokenizer.json and tokenizer_config.json."""
        return self.dataset(dataset) / "tokenizer"

    def hashes(self, dataset: str) -> Path:
        """Where deduplication keeps the hashes of documents."""
        return self.dataset(dataset) / "hashes"

    def run(self, run: str) -> Path:
        """Everything of one training run."""
        return self.root / "runs" / run

    def metrics(self, run: str) -> Path:
        """One JSON line per logged step."""
        return self.run(run) / "metrics.jsonl"

    def weights(self, run: str, step: int) -> Path:
        """Weights that are kept for good."""
        return self.run(run) / "checkpoints" / step_name(step)

    def state(self, run: str, step: int) -> Path:
        """What an exact resume needs."""
        return self.run(run) / "state" / step_name(step)

    def export(self, run: str, step: int) -> Path:
        """A Hugging Face model folder."""
        return self.root / "exports" / run / f"checkpoint-{step}"

    def set_aside(self, run: str) -> Path:
        """What was in the way of a run: damaged states, folders without a record."""
        return self.run(run) / SET_ASIDE

    def exports_set_aside(self, run: str) -> Path:
        """Exported folders that were in the way; exports may lie on another disk than runs."""
        return self.root / "exports" / run / SET_ASIDE

    def registry(self, experiment: str) -> Path:
        """The published runs of an experiment."""
        return self.root / "published" / experiment / "models.json"

    def turns(self) -> Path:
        """One file for each commit that was sent to the Hub in the last hours."""
        return self.root / "published" / "turns"

    def receipts(self) -> Path:
        """Which commit of the Hub holds which record."""
        return self.root / "published" / "receipts"

    def sources(self) -> Path:
        """Corpora that were fetched from a network."""
        return self.root / "sources"

    def relative(self, path: Path) -> str:
        """A path as records write it: inside the workspace, with forward slashes.

        Raises:
            PathError: the path is not inside the workspace.
        """
        if not path.absolute().is_relative_to(self.root.absolute()):
            raise PathError(f"found the file {path}, expected one inside the workspace {self.root}; put it there")
        relative = path.absolute().relative_to(self.root.absolute()).as_posix()
        self.inside(relative)
        return relative

    def inside(self, relative: str) -> Path:
        """The file that a record names.

        Raises:
            PathError: the path is absolute or contains `..`, or a part of it is a link. The folders that an operator
                may move to another disk (`data`, `runs`, `exports`, `runs/<run>`) may be links to folders.
            StorageError: the file system does not answer.
        """
        parts = relative.split("/")
        if not relative or "\0" in relative or relative.startswith("/") or any(p in ("", ".", "..") for p in parts):
            raise PathError(
                f"a record names the file {relative!r}, expected a plain path inside the workspace {self.root}; "
                "the record was not written by this program: remove it"
            )
        path = self.root
        for number, part in enumerate(parts, start=1):
            path = path / part
            if not self._is_there(path, tuple(parts[:number])):
                break
        return self.root / relative

    def refuse_other_links(self) -> None:
        """Make sure that no link stands for a folder of the layout that may not be one. Raises as `inside` does."""
        for name in ("manifest", "data", "runs", "exports", "published", "jobs"):
            self.inside(name)

    def refuse_links(self, folder: Path) -> None:
        """Make sure that no link stands on the way to a folder, nor in it, before anything in it is changed.

        Raises:
            PathError: one does; names it.
            StorageError: the file system does not answer.
        """
        self.inside(folder.relative_to(self.root).as_posix())
        with read_errors(folder), contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    self.inside((folder / entry.name).relative_to(self.root).as_posix())

    def _is_there(self, path: Path, parts: tuple[str, ...]) -> bool:
        """Whether a part of a path exists, which is one look at the file system; refuses a link."""
        try:
            with read_errors(path):
                is_link = stat.S_ISLNK(os.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):  # nothing lies below it
            return False
        except ValueError:  # a text without a UTF-8 form
            raise PathError(f"found {path.name!r} in a path, expected a name that the file system can hold") from None
        if is_link and not may_be_link(parts):
            raise PathError(
                f"{path}: found a link, expected a file or folder of the workspace itself; nothing was changed\n"
                "  put the file or folder there instead of the link; only data, runs, exports and runs/<run> may be "
                "links to other disks"
            )
        if is_link and not path.is_dir():
            raise PathError(
                f"{path}: found a link to {path.readlink()}, which is no folder, expected the folder that was moved "
                "there; nothing was changed\n  mount its file system, or correct the link"
            )
        return True


def may_be_link(parts: tuple[str, ...]) -> bool:
    """Whether a folder of the layout may be a link to another disk: `data`, `runs`, `exports` and `runs/<run>`."""
    return parts in (("data",), ("runs",), ("exports",)) or (len(parts) == 2 and parts[0] == "runs")


def step_name(step: int) -> str:
    """`step-00001000`: sorts by number in a listing."""
    return f"step-{step:08d}"


def step_number(name: str) -> int:
    """The step of `step-00001000` or `checkpoint-1000`.

    Raises:
        PathError: the name ends in no number.
    """
    digits = name.rpartition("-")[2]
    if not digits.isdecimal():
        raise PathError(
            f"found the name {name!r} among records or folders of steps, expected one such as step-00001000 or "
            "checkpoint-1000; run verify, which names the file, and move it elsewhere"
        )
    return int(digits)
