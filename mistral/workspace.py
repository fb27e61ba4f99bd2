"""names of datasets, runs and steps -> paths: the one place that knows how a workspace is laid out.

workspace/
  manifest/<stage>/<...key...>.json
  data/<dataset>/<split>/00017.h5    data/<dataset>/tokenizer/
  runs/<run>/config.yaml metrics.jsonl checkpoints/step-00001000/ state/step-00001000/ tensorboard/
  exports/<run>/checkpoint-1000/
  published/<experiment>/models.json README.md   published/commits
  jobs/<stage>/<submission>/    jobs/attempts/<job>/
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from mistral.errors import PathError


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

    def registry(self, experiment: str) -> Path:
        """The published runs of an experiment."""
        return self.root / "published" / experiment / "models.json"

    def commits(self) -> Path:
        """When the last commits were sent to the Hub."""
        return self.root / "published" / "commits"

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
            PathError: the path is absolute, contains `..`, or passes through a link that leaves the workspace.
        """
        parts = relative.split("/")
        if not relative or "\0" in relative or relative.startswith("/") or any(p in ("", ".", "..") for p in parts):
            raise PathError(
                f"a record names the file {relative!r}, expected a plain path inside the workspace {self.root}; "
                "the record was not written by this program: remove it"
            )
        path = self.root / relative
        if not _has_link(self.root, parts):
            return path
        try:
            stays = path.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError, ValueError):  # links in a circle, or a name that the file system cannot hold
            stays = False
        if not stays:
            raise PathError(
                f"a record names the file {relative!r}, which a link takes out of the workspace {self.root}; "
                "put the file itself there, or remove the record"
            )
        return path


def _has_link(folder: Path, parts: list[str]) -> bool:
    """Whether a link may stand on the way from a folder to a file in it: one look at each part, none at the folder's.

    What cannot be looked at counts as a link.
    """
    for part in parts:
        folder = folder / part
        try:
            if stat.S_ISLNK(os.lstat(folder).st_mode):
                return True
        except FileNotFoundError:  # nor does anything lie below it
            return False
        except (OSError, ValueError):
            return True
    return False


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
