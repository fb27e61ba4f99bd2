"""one attempt to train a run -> its ranks as processes that cost a fraction of a second, and ways to kill them.

The ranks are forked from a server that has torch, transformers and DeepSpeed imported already; each then calls what a
task of the command line calls. What shall happen to a rank is set up inside the child before it does, so that the
code under test holds no test code.
"""

import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults import faults

from mistral.config import Cluster, Experiment, load_experiment
from mistral.errors import MistralError
from mistral.files import sha256_of
from mistral.manifest import Manifest
from mistral.workspace import Workspace

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "deepspeed.runtime.zero.muon.muon_optimizer",  # imports what torch.compile needs: a second each time
        "torch.utils.tensorboard",
        "transformers.models.gpt2.modeling_gpt2",
        "mistral.training",
        "pipeline.train",
    ]
)
PATIENCE_SECONDS = 2.0  # for the other ranks, once one has failed
CRASHED = 101  # exit code of a child that raised something which no user can mend
CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}  # audit events, and open


@dataclass(frozen=True)
class Fate:
    """What happens to a rank; nothing unless something is given.

    `signal` comes either before the step `at_step`, or before the change number `at_change` of those files of the
    workspace whose path holds `path`. With `largest_file` (bytes) a longer file cannot be written, as on a full disk;
    if also `dies_of_it`, the kernel kills the process in the middle of that write. With `fault_at` the call of that
    number on a file of the workspace fails with the errno `fault`.
    """

    at_step: int | None = None
    at_change: int | None = None
    path: str = ""
    signal: int = signal.SIGKILL
    largest_file: int | None = None
    dies_of_it: bool = False
    fault_at: int | None = None
    fault: int = errno.EIO


@dataclass
class Attempt:
    """The ranks of one attempt, while they run and after."""

    told: Path
    seconds: float
    processes: list[Any] = field(default_factory=list)

    def codes(self) -> list[int]:
        """Wait for all ranks as the launcher does; exit codes, negative for signals."""
        end = time.monotonic() + self.seconds
        while any(process.is_alive() for process in self.processes):
            if any(process.exitcode for process in self.processes):
                end = min(end, time.monotonic() + PATIENCE_SECONDS)
            if time.monotonic() > end:
                self.kill()
            time.sleep(0.01)
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """SIGKILL to all ranks."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def said(self) -> str:
        """What rank 0 told the user, and the error of each rank that failed."""
        return "".join(path.read_text(encoding="utf-8") for path in sorted(self.told.glob("rank-*.txt")))


@dataclass(frozen=True)
class Case:
    """What an attempt trains: an experiment's file with overrides, a workspace, a number of ranks."""

    file: Path
    root: Path
    ranks: int = 1
    overrides: tuple[str, ...] = ()
    seed: str = "alias"
    allow_drift: bool = False
    told_as: str = "told"
    seconds: float = 120.0  # that an attempt may take

    @property
    def experiment(self) -> Experiment:
        return load_experiment(str(self.file), self.overrides)

    @property
    def run_name(self) -> str:
        return self.experiment.run_name(self.seed)

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.root)

    @property
    def manifest(self) -> Manifest:
        return Manifest(self.workspace)

    @property
    def told(self) -> Path:
        """Where the ranks of an attempt write what they say; outside the workspace."""
        return self.root.with_name(f"{self.root.name}-{self.told_as}")

    def start(self, *fates: Fate) -> Attempt:
        """Start all ranks; the fates are those of ranks 0, 1 ..."""
        from pipeline.local import rank_environments

        attempt = Attempt(self.told, self.seconds)
        shutil.rmtree(attempt.told, ignore_errors=True)
        attempt.told.mkdir(parents=True)
        for rank, environment in enumerate(rank_environments(self.ranks) if self.ranks > 1 else [{}]):
            fate = fates[rank] if rank < len(fates) else Fate()
            process = SERVER.Process(target=be_child, args=(self, rank, environment, fate))
            process.start()
            attempt.processes.append(process)
        return attempt

    def train(self, *fates: Fate, code: int = 0) -> str:
        """One attempt, in which rank 0 must end with an exit code, and every rank if it is 0; returns what was said."""
        attempt = self.start(*fates)
        codes = attempt.codes()
        assert codes[0] == code and (code or not any(codes)), (
            f"exit codes {codes}, expected {code} of rank 0:\n{attempt.said()}"
        )
        return attempt.said()

    def die(self, *fates: Fate) -> None:
        """One attempt, in which a rank must be killed by a signal."""
        attempt = self.start(*fates)
        codes = attempt.codes()
        assert min(codes) < 0, f"exit codes {codes}, expected a killed rank:\n{attempt.said()}"
        assert CRASHED not in codes or self.ranks > 1, attempt.said()


# --- inside the child -------------------------------------------------------------------------------------------


class Told:
    """A Progress that writes what it is told into a file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8", buffering=1)

    def start(self, name: str, total: int, unit: str, done: int = 0) -> None:
        """Ignored."""

    def advance(self, amount: int = 1, **facts: float) -> None:
        """Ignored."""

    def finish(self) -> None:
        """Ignored."""

    def say(self, text: str) -> None:
        """One line."""
        self.file.write(text + "\n")


def be_child(case: Case, rank: int, environment: dict[str, str], fate: Fate) -> None:
    """Be one rank of an attempt, and leave with the exit code of the command line."""
    os.environ.update(environment)
    told = Told(case.told / f"rank-{rank}.txt")
    sys.stderr = told.file
    keep_batches(case.told / f"batches-{rank}.jsonl", rank)
    prepare(fate, case.root)
    try:
        train_task(case, told)
    except MistralError as error:
        told.say(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_code)
    except OSError as error:  # as the command line tells it
        told.say(f"{type(error).__name__}: {error}")
        sys.exit(MistralError.exit_code)
    except Exception:  # noqa: BLE001  the parent reads what it was
        told.say(traceback.format_exc())
        os._exit(CRASHED)


def train_task(case: Case, told: Told) -> None:
    """What `mistral-pipeline train --task N` calls."""
    from pipeline.context import Context
    from pipeline.train import TrainOptions
    from pipeline.train import train_task as task_of_the_command_line

    stages = {"train": {"ranks_per_node": case.ranks}}
    cluster = Cluster.model_validate({"name": "test", "executor": "local", "stages": stages})
    context = Context(case.experiment, cluster, case.workspace, told)
    task = list(case.experiment.seeds).index(case.seed)
    task_of_the_command_line(context, task, TrainOptions(allow_drift=case.allow_drift))


def keep_batches(path: Path, rank: int) -> None:
    """Write down the hash of each sequence that this rank reads for training."""
    from mistral.batches import Batches

    read = Batches.micro_batch

    def micro_batch(self: Batches, step: int, micro_step: int) -> Any:
        rows = read(self, step, micro_step)
        hashes = [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in rows]
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([step, micro_step, rank, hashes]) + "\n")
        return rows

    Batches.micro_batch = micro_batch  # type: ignore[method-assign]


def prepare(fate: Fate, root: Path) -> None:
    """Let this process meet its fate."""
    if fate.largest_file is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (fate.largest_file, fate.largest_file))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fate.dies_of_it else signal.SIG_IGN)
    if fate.at_step is not None:
        _signal_at_step(fate.at_step, fate.signal)
    if fate.at_change is not None:
        _signal_at_change(fate, str(root))
    if fate.fault_at is not None:
        _fail_at_call(fate.fault_at, fate.fault, str(root))


def _signal_at_step(step: int, number: int) -> None:
    from mistral.loop import Loop

    advance = Loop.advance

    def advance_or_not(self: Loop) -> tuple[float, float]:
        if self.step == step:
            os.kill(os.getpid(), number)
        return advance(self)

    Loop.advance = advance_or_not  # type: ignore[method-assign]


_FOR_GOOD = contextlib.ExitStack()  # of this process, which ends without leaving it


def _fail_at_call(number: int, code: int, root: str) -> None:
    left = [number]

    def choose(call: str, path: str) -> int | None:
        left[0] -= path.startswith(root + "/")
        return code if left[0] == 0 and path.startswith(root + "/") else None

    _FOR_GOOD.enter_context(faults(choose))


def _signal_at_change(fate: Fate, root: str) -> None:
    left = [fate.at_change or 0]

    def before(event: str, arguments: tuple[Any, ...]) -> None:
        if changes(event, arguments, root) and fate.path in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), fate.signal)

    sys.addaudithook(before)


def changes(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    """Whether an audit event is about to change a file of the workspace (or to open it, as fsync does)."""
    return (event in CHANGES or event == "open") and str(arguments[0]).startswith(root + "/")


# --- what a run has left ----------------------------------------------------------------------------------------


def outcome(case: Case) -> dict[str, Any]:
    """All that the bitwise promise covers: weights, the last state (moments too), metrics without timings."""
    folder = case.workspace.run(case.run_name)
    files = sorted([*folder.glob("checkpoints/*/*"), *max(folder.glob("state/*")).iterdir()])
    hashes: dict[str, Any] = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    return hashes | {"metrics": metrics_of(case)}


def metrics_of(case: Case) -> list[dict[str, Any]]:
    """The lines of the metrics, without what a clock or a machine decides."""
    lines = map(json.loads, case.workspace.metrics(case.run_name).read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in line.items() if key not in ("timing", "memory")} for line in lines]


def differing(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of what is not the same in two outcomes."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def batches_of(case: Case) -> list[list[str]]:
    """The sequences of each step of the last attempt, in the order of micro steps and ranks, as hashes."""
    lines = [json.loads(line) for path in case.told.glob("batches-*.jsonl") for line in path.read_text().splitlines()]
    steps: dict[int, list[str]] = {}
    for step, _, _, hashes in sorted(lines):
        steps.setdefault(step, []).extend(hashes)
    return [steps[step] for step in sorted(steps)]


def leftovers(case: Case) -> list[str]:
    """Temporary files in the workspace, but those of a lease, which another process may be about to take."""
    paths = [path.relative_to(case.root).as_posix() for path in case.root.rglob("*.tmp")]
    return [path for path in paths if "/.lease-" not in path]
