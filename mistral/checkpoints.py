"""whole tensors -> weights kept for good and states for resuming, each committed by its record; and back.

Two kinds. *Weights* (fp32 safetensors and config.json, as transformers reads them) stay for good at every scheduled
step. A *state* (parameters, optimizer moments, a few numbers) makes an exact resume possible; the last few are kept.

Rank 0 alone writes. It writes in the background, one thing at a time and in order, so that a state at step S is
committed after all scheduled weights up to S. A folder without a record is rubbish.
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

from mistral.errors import CheckpointError
from mistral.files import finish_file, fsync_folder, make_folder, remove_folder, storage_errors, temporary_beside
from mistral.lease import Lease
from mistral.manifest import FileEntry, Manifest, Record, difference, make_record
from mistral.workspace import step_name, step_number

log = logging.getLogger(__name__)
Tensors = dict[str, torch.Tensor]
STEP = re.compile(r"^step-\d{8}$")


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


def newest_state(manifest: Manifest, run: str) -> tuple[Record | None, list[tuple[int, list[str]]]]:
    """The newest whole state of a run, and what is wrong with newer ones.

    Returns:
        its record, or None if there is no whole state; and (step, problems) of each damaged newer one.
    """
    damaged: list[tuple[int, list[str]]] = []
    for name in reversed(manifest.names("train", (run, "state"))):
        record = manifest.find("train", (run, "state", name))
        problems = manifest.damage(record) if record else []
        if record and not problems:
            return record, damaged
        damaged.append((step_number(name), problems))
    return None, damaged


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
        self, manifest: Manifest, run: str, config: str, dataset: str, lease: Lease, *, drift: str | None = None
    ) -> None:
        """Args:
        manifest: where records go.
        run: the run's name.
        config: digest of the run's frozen config.
        dataset: content digest of its dataset.
        lease: checked before each commit.
        drift: content digest of the last change of software or hardware, if there was one.
        """
        self._manifest, self._run, self._config, self._dataset, self._lease = manifest, run, config, dataset, lease
        self._drift = drift
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

    def withdraw_state(self, step: int) -> None:
        """Remove a damaged state: its record first, so that no record ever names files that are gone."""
        self._lease.check()
        self._manifest.remove("train", (self._run, "state", step_name(step)))
        remove_folder(self._manifest.workspace.state(self._run, step))

    def remove_rubbish(self) -> None:
        """Remove what interrupted writes left behind: folders without a record, and temporary files."""
        self._lease.check()
        for kind, name in (("weights", "checkpoints"), ("state", "state")):
            parent = self._manifest.workspace.run(self._run) / name
            recorded = set(self._manifest.names("train", (self._run, kind)))
            for folder in parent.iterdir() if parent.is_dir() else ():
                if folder.name not in recorded and (STEP.match(folder.name) or folder.name.endswith(".tmp")):
                    log.info("removed unfinished %s", folder)
                    remove_folder(folder)
        for path in self._temporary_files():
            path.unlink(missing_ok=True)

    def _temporary_files(self) -> Iterator[Path]:
        for path in self._manifest.workspace.run(self._run).glob(".*.tmp"):
            if not path.name.startswith(".lease-"):  # another process may be asking for the lease
                yield path
        yield from self._manifest.path("train", (self._run, "begin")).parent.rglob(".*.tmp")

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
            inputs = self._inputs(job.kind, job.step)
            kind, config = f"train/{job.kind}", self._config
            record = make_record(kind, key, config=config, inputs=inputs, files=files, facts=job.facts, **job.maker)
            self._lease.check()
            earlier = self._manifest.find("train", key)
            if earlier is None:
                remove_folder(job.folder)
                temporary.rename(job.folder)
                fsync_folder(job.folder.parent)
            elif self._drift:
                self._require_same_files(earlier, record)
                return
            self._manifest.publish(record)
        finally:
            with suppress(OSError):
                remove_folder(temporary)

    def _require_same_files(self, earlier: Record, record: Record) -> None:
        """After a drift, a step that is done again keeps its record if its bits are the same.

        Raises:
            CheckpointError: they are not.
        """
        if earlier.files != record.files:
            name = "/".join(record.key)
            raise CheckpointError(
                f"{name}: found other bits than were recorded before software or hardware changed, expected the same:\n"
                f"{difference(earlier, record)}\n"
                "  go on with what the run was trained with before, or give up the recorded steps from this one on: "
                f"remove manifest/train/{name}.json and later ones, and what was exported from them"
            )

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
            self.withdraw_state(step_number(name))


def require_weights(manifest: Manifest, run: str, steps: list[int]) -> None:
    """Make sure that all scheduled weights up to a state are recorded, before a run goes on from it.

    Raises:
        CheckpointError: names those that are missing.
    """
    recorded = set(manifest.names("train", (run, "weights")))
    absent = [step for step in steps if step_name(step) not in recorded]
    if absent:
        raise CheckpointError(
            f"{run}: found no weights of step {', '.join(map(str, absent[:5]))}, expected every scheduled step up to "
            "the state to be recorded\n  restore them, or remove the later states under manifest/train to train "
            "those steps again"
        )
