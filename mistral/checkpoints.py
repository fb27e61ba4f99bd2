"""whole tensors -> weights kept for good and states for resuming, each committed by its record; and back.

Two kinds. *Weights* (fp32 safetensors and config.json, as transformers reads them) stay for good at every scheduled
step. A *state* (parameters, optimizer moments, a few numbers) makes an exact resume possible; the last few are kept.

Rank 0 alone writes. It writes in the background, one thing at a time and in order, so that a state at step S is
committed after all scheduled weights up to S. A folder without a record does not count.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mistral.files import finish_file, fsync_folder, make_folder, remove_folder, storage_errors, temporary_beside
from mistral.giveup import REASON, give_up_from
from mistral.lease import Lease
from mistral.manifest import FileEntry, Manifest, Record, make_record
from mistral.setaside import folders_of, set_aside
from mistral.workspace import step_name, step_number

log = logging.getLogger(__name__)
Tensors = dict[str, torch.Tensor]
STEP = re.compile(r"^step-\d{8}$")
OWN_TEMPORARY = re.compile(r"^\.step-\d{8}\.\d+\.[0-9a-f]+\.tmp$")  # files.temporary_beside


@dataclass(frozen=True)
class SavedState:
    """A whole state on disk, its hashes checked."""

    folder: Path
    step: int
    updates: int
    loss_scale: dict[str, float]

    def parameters(self) -> Tensors:
        """The fp32 parameters by name."""
        with safe_open(self.folder / "state.safetensors", framework="pt") as file:
            return {name: file.get_tensor(f"param/{name}") for name in parameter_names(file.keys())}

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor: `param/<name>`, `exp_avg/<name>` or `exp_avg_sq/<name>`."""
        with safe_open(self.folder / "state.safetensors", framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor


def parameter_names(keys: Iterable[str]) -> list[str]:
    """The parameters among the tensors of a state.safetensors."""
    return [key.removeprefix("param/") for key in keys if key.startswith("param/")]


def read_state(folder: Path) -> SavedState:
    """Open a state whose files were checked against their record."""
    numbers = json.loads((folder / "state.json").read_bytes())
    return SavedState(folder, numbers["step"], numbers["updates"], numbers["loss_scale"])


@dataclass(frozen=True)
class _Write:
    """One checkpoint on its way to the disk."""

    kind: str
    step: int
    folder: Path
    write: Callable[[Path], None]
    facts: dict[str, Any]
    maker: dict[str, Any]


class Checkpoints:
    """Writes the checkpoints of one run; held by the owner of the run's lease."""

    def __init__(
        self,
        manifest: Manifest,
        run: str,
        config: str,
        dataset: str,
        lease: Lease,
        *,
        drift: str | None = None,
        deterministic: bool = True,
    ) -> None:
        """Args:
        manifest: where records go.
        run: the run's name.
        config: digest of the run's frozen config.
        dataset: content digest of its dataset.
        lease: checked before each commit.
        drift: content digest of the last change of software or hardware, if there was one.
        deterministic: whether the same step, made again, must have the same bits.
        """
        self._manifest, self._run, self._config, self._dataset, self._lease = manifest, run, config, dataset, lease
        self._drift, self._deterministic = drift, deterministic
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._pending: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown(wait=True)

    def save_weights(self, step: int, tensors: Tensors, config_json: str, facts: dict[str, Any], **maker: Any) -> None:
        """Write weights in the background; an error is raised by the next call of `raise_errors`."""
        self.wait()  # at most one set of tensors is held in memory
        folder = self._manifest.workspace.weights(self._run, step)

        def write(temporary: Path) -> None:
            save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
            (temporary / "config.json").write_text(config_json, encoding="utf-8")

        self._submit(_Write("weights", step, folder, write, facts, maker))

    def save_state(self, step: int, tensors: Tensors, numbers: dict[str, Any], **maker: Any) -> None:
        """Write a state in the background, after the weights that are being written.

        Args:
            step: optimizer steps done.
            tensors: `param/<name>`, `exp_avg/<name>`, `exp_avg_sq/<name>`.
            numbers: `updates` and `loss_scale`.
            maker: more for the record's made_by.
        """
        self.wait()
        folder = self._manifest.workspace.state(self._run, step)

        def write(temporary: Path) -> None:
            save_file(tensors, temporary / "state.safetensors")
            (temporary / "state.json").write_text(json.dumps({"step": step, **numbers}), encoding="utf-8")

        facts = {"step": step, "updates": numbers["updates"]}
        self._submit(_Write("state", step, folder, write, facts, maker))

    def raise_errors(self) -> None:
        """Raise the error of a finished write; called at each step boundary."""
        while self._pending and self._pending[0].done():
            self._pending.pop(0).result()

    def wait(self) -> None:
        """Wait until everything is committed; raises the error of a write that failed."""
        while self._pending:
            self._pending.pop(0).result()

    def keep_newest_states(self, count: int) -> None:
        """Remove all states but the newest `count`; scheduled weights are never touched."""
        self._pending.append(self._writer.submit(self._remove_old_states, count))

    def remove_temporaries(self) -> None:
        """Remove what writes of dead processes left under temporary names: the lease says that none is at work."""
        self._lease.check()
        run = self._manifest.workspace.run(self._run)
        for folder in (*run.glob("checkpoints/.step-*"), *run.glob("state/.step-*")):
            if OWN_TEMPORARY.match(folder.name):
                log.info("removed unfinished %s", folder)
                remove_folder(folder)
        for path in self._temporary_files():
            path.unlink(missing_ok=True)

    def _temporary_files(self) -> Iterator[Path]:
        for path in self._manifest.workspace.run(self._run).glob(".*.tmp"):
            if not path.name.startswith(".lease-"):  # another process may be asking for the lease
                yield path
        yield from self._manifest.path("train", (self._run, "begin")).parent.rglob(".*.tmp")
        for folder in folders_of(self._manifest.workspace, self._run):
            yield from folder.glob(".*.tmp")

    def _submit(self, job: "_Write") -> None:
        self._pending.append(self._writer.submit(self._commit, job))

    def _commit(self, job: "_Write") -> None:
        """Files beside, durable, hashed; folder renamed; record last. Runs in the background thread."""
        key = (self._run, job.kind, step_name(job.step))
        temporary = temporary_beside(job.folder)
        make_folder(temporary)
        try:
            with storage_errors(job.folder):
                job.write(temporary)
                files = [self._durable(path, job.folder) for path in sorted(temporary.iterdir())]
                fsync_folder(temporary)
            inputs, facts = self._inputs(job.kind, job.step), job.facts | self._newest_state(job)
            kind, config = f"train/{job.kind}", self._config
            record = make_record(kind, key, config=config, inputs=inputs, files=files, facts=facts, **job.maker)
            self._lease.check()
            earlier = self._manifest.find("train", key)
            if earlier and earlier.files == record.files and self._drift:
                return  # the bits are those of before the change, and so is their lineage
            if earlier and earlier.files != record.files and self._may_differ(earlier):
                self._give_up(job, earlier)
                earlier = None
            if earlier is None:
                self._take_place(temporary, job.folder)
            self._manifest.publish(record)
        finally:
            with suppress(OSError):
                remove_folder(temporary)

    def _newest_state(self, job: "_Write") -> dict[str, int | None]:
        """What weights record of the run's states: so a run whose states are lost is known from one that had none."""
        if job.kind == "state":
            return {}
        names = self._manifest.names("train", (self._run, "state"))
        return {"newest_state": step_number(names[-1]) if names else None}

    def _may_differ(self, earlier: Record) -> bool:
        """Whether a step may have other bits than when it was made first."""
        return not self._deterministic or earlier.inputs.get("drift") != self._drift

    def _give_up(self, job: "_Write", earlier: Record) -> None:
        """Set aside what was recorded of a step that came out with other bits, which it may."""
        if job.kind == "weights":
            give_up_from(self._manifest, self._run, job.step, self._lease)
        else:
            set_aside(self._manifest, job.folder, self._manifest.workspace.set_aside(self._run), REASON, earlier)

    def _take_place(self, temporary: Path, folder: Path) -> None:
        """Give a whole folder its name; what has the name without a record is set aside."""
        if folder.exists():
            into = self._manifest.workspace.set_aside(self._run)
            set_aside(self._manifest, folder, into, "it has no record, and its step was made again")
        temporary.rename(folder)
        fsync_folder(folder.parent)

    def _durable(self, path: Path, folder: Path) -> FileEntry:
        finish_file(path)
        entry = self._manifest.entry(path)
        return FileEntry(self._manifest.workspace.relative(folder / path.name), entry.bytes, entry.sha256)

    def _inputs(self, kind: str, step: int) -> dict[str, str]:
        """The dataset; as `parent` (of weights) or `weights` (of a state) the last weights before; any drift."""
        names = self._manifest.names("train", (self._run, "weights"))
        before = [name for name in names if step_number(name) < step or (kind == "state" and step_number(name) == step)]
        inputs = {"dataset": self._dataset} | ({"drift": self._drift} if self._drift else {})
        if before:
            key = (self._run, "weights", before[-1])
            parent = self._manifest.get("train", key, "run verify")
            inputs["parent" if kind == "weights" else "weights"] = parent.content
        return inputs

    def _remove_old_states(self, count: int) -> None:
        for name in self._manifest.names("train", (self._run, "state"))[:-count]:
            self._lease.check()
            self._manifest.remove("train", (self._run, "state", name))  # no record names files that are gone
            folder = self._manifest.workspace.state(self._run, step_number(name))
            with suppress(FileNotFoundError):  # a process that dies while it removes a folder leaves it half
                remove_folder(folder.rename(temporary_beside(folder)))
