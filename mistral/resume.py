"""records and folders of a run -> the step that it goes on from; what is in the way is set aside, never deleted.

Everything is looked at before anything is changed. A file that differs from its record in size or hash, or is gone, is
damaged; a file that cannot be read is an error, which changes nothing.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mistral.checkpoints import STEP
from mistral.errors import CheckpointError
from mistral.files import read_errors
from mistral.lease import Lease
from mistral.manifest import Manifest, Record
from mistral.progress import Progress
from mistral.restore import proven
from mistral.run import Run
from mistral.setaside import set_aside
from mistral.workspace import step_name, step_number

FOLDERS = {"weights": "checkpoints", "state": "state"}  # of the records of each kind
SHOWN = 5


@dataclass(frozen=True)
class GoBack:
    """What the command line allows where the newest state cannot be used."""

    to_step_0: bool = False
    to_earlier_state: bool = False


@dataclass(frozen=True)
class Survey:
    """What a run has to go on from.

    `state` is the newest whole state up to which every scheduled step is recorded. `damaged` are states with what is
    wrong with them; `beyond` are whole states after a scheduled step that is not recorded (`absent`).
    """

    state: Record | None
    damaged: tuple[tuple[Record, list[str]], ...]
    beyond: tuple[Record, ...]
    absent: tuple[int, ...]
    unrecorded: tuple[Path, ...]  # folders of steps that have no record
    progress: int | None  # the last step that a state was saved at, as far as records tell; None if none ever was


def survey(manifest: Manifest, run: str, scheduled: Sequence[int]) -> Survey:
    """Look at the records and folders of a run; changes nothing.

    Raises:
        PathError: a link stands where a folder of the run should be.
        StorageError: a file cannot be read.
        ManifestError: a record is damaged.
    """
    unrecorded = tuple(_unrecorded(manifest, run))
    weights = {step_number(name) for name in manifest.names("train", (run, "weights"))}
    damaged: list[tuple[Record, list[str]]] = []
    beyond: list[Record] = []
    usable, absent = None, tuple[int, ...]()
    for name in reversed(manifest.names("train", (run, "state"))):
        record = manifest.get("train", (run, "state", name), "run the same command again")
        if problems := manifest.damage(record):
            damaged.append((record, problems))
            continue
        missing = tuple(step for step in scheduled if step <= step_number(name) and step not in weights)
        absent = absent or missing
        if not missing:
            usable = record
            break
        beyond.append(record)
    states = [step_number(record.key[-1]) for record in (usable, *beyond, *(one for one, _ in damaged)) if record]
    last = max(states, default=None)
    if last is None and weights:
        last = _last_state(manifest, run, max(weights), unrecorded)
    return Survey(usable, tuple(damaged), tuple(beyond), absent, unrecorded, last)


def _last_state(manifest: Manifest, run: str, newest: int, unrecorded: Sequence[Path]) -> int | None:
    """The step of a state that was saved once, of a run that has no record of any; None if none ever was.

    Weights record the newest state at their time. A process that dies leaves at most one folder without a record.
    """
    record = manifest.get("train", (run, "weights", step_name(newest)), "run the same command again")
    noted: int | None = record.facts.get("newest_state")
    folders = sorted(step_number(path.name) for path in unrecorded if path.parent.name == FOLDERS["state"])
    return folders[-1] if noted is None and len(folders) > 1 else noted


def _unrecorded(manifest: Manifest, run: str) -> Iterator[Path]:
    """Folders of steps without a record; refuses links first."""
    workspace = manifest.workspace
    workspace.refuse_links(workspace.run(run))
    for kind, name in FOLDERS.items():
        parent, recorded = workspace.run(run) / name, set(manifest.names("train", (run, kind)))
        workspace.refuse_links(parent)
        with read_errors(parent), contextlib.suppress(FileNotFoundError):
            for path in sorted(parent.iterdir()):
                if path.name in recorded:
                    workspace.refuse_links(path)
                elif STEP.match(path.name):
                    yield path


def choose_state(run: Run, lease: Lease, go_back: GoBack, progress: Progress) -> int | None:
    """The step to go on from, None for the beginning; then sets aside what is in the way and says so.

    Args:
        run: the run.
        lease: checked before each change.
        go_back: what is allowed where the newest state cannot be used.
        progress: receives what is said.

    Raises:
        CheckpointError: the run has progress that it cannot go on from; says what to restore. Nothing was changed.
    """
    found = survey(run.manifest, run.name, run.experiment.scheduled_steps())
    refuse_absent(run, found, go_back)
    refuse_step_0(run, found, go_back)
    clear(run, lease, found, progress)
    if found.state is None:
        if found.progress is not None:
            progress.say(f"{run.name}: no state can be used; training starts again from step 0")
        return None
    step = step_number(found.state.key[-1])
    progress.say(f"{run.name}: going on from step {step}")
    return step


def refuse_absent(run: Run, found: Survey, go_back: GoBack) -> None:
    """Do not go on over a scheduled step whose weights have no record.

    Raises:
        CheckpointError: one has none, and going back was not asked for.
    """
    if not found.absent or go_back.to_step_0 or (go_back.to_earlier_state and found.state):
        return
    manifest, workspace, steps = run.manifest, run.manifest.workspace, found.absent
    again = {step_number(record.key[-1]) for record in proven(manifest, run.name, steps)}
    lines = []
    for step in steps[:SHOWN]:
        folder, record = workspace.weights(run.name, step), manifest.path("train", _key(run, step))
        there = "its folder is there" if folder.is_dir() else f"and no folder {folder}"
        lines.append(f"  step {step}: no {record}, {there}" + (", which later records prove" if step in again else ""))
    train = partial(run.experiment.command, "train", workspace.root, "--seed", run.seed)
    restore = run.experiment.command("restore", workspace.root, "--seed", run.seed)
    advice = [f"restore {'these records' if len(again) == len(steps) else 'these records and folders'} from a copy"]
    if again:
        proved = ", ".join(map(str, sorted(again)[:SHOWN]))
        advice.append(f"record step {proved} again: {restore}")
    if found.state:
        back = step_number(found.state.key[-1])
        advice.append(f"train again from the state of step {back}: {train('--from-earlier-state')}")
    else:
        advice.append(f"train again from step 0: {train('--from-step-0')}")
    raise CheckpointError(
        f"{run.name}: found no record of the weights of step {', '.join(map(str, steps[:SHOWN]))}, expected one of "
        f"every scheduled step up to the state of step {found.progress}; nothing was changed\n"
        + "\n".join([*lines, *(f"  {'or ' if number else ''}{text}" for number, text in enumerate(advice))])
    )


def refuse_step_0(run: Run, found: Survey, go_back: GoBack) -> None:
    """Do not begin again where states were saved.

    Raises:
        CheckpointError: none of them can be used, and `--from-step-0` was not given.
    """
    if found.state is not None or found.progress is None or go_back.to_step_0:
        return
    problems = [f"  {problem}" for _, problems in found.damaged for problem in problems]
    folder = run.manifest.workspace.run(run.name) / FOLDERS["state"]
    command = run.experiment.command("train", run.manifest.workspace.root, "--seed", run.seed, "--from-step-0")
    records = run.manifest.path("train", (run.name, "begin")).parent / "state"
    shown = "\n".join(problems) or f"  no state is recorded in {records}"
    raise CheckpointError(
        f"{run.name}: found no whole state, expected one, as a state of step {found.progress} was saved; nothing was "
        f"changed\n{shown}\n"
        f"  restore the files of a state in {folder} and its record\n"
        f"  or train again from step 0: {command}"
    )


def _key(run: Run, step: int) -> tuple[str, str, str]:
    return (run.name, "weights", step_name(step))


def clear(run: Run, lease: Lease, found: Survey, progress: Progress) -> None:
    """Set aside what is in the way, and say so: a line for each."""
    manifest, workspace = run.manifest, run.manifest.workspace
    into = workspace.set_aside(run.name)

    def aside(path: Path, reason: str, record: Record | None = None) -> None:
        lease.check()
        target = set_aside(manifest, path, into, reason, record)
        progress.say(f"{run.name}: set aside {workspace.relative(path)} as {workspace.relative(target)}: {reason}")

    goes_back = found.beyond or (found.state is None and found.progress is not None)
    if goes_back and workspace.metrics(run.name).exists():
        lease.check()
        set_aside(manifest, workspace.metrics(run.name), into, "copied before training went back", copy=True)
    for record, problems in found.damaged:
        step = step_number(record.key[-1])
        aside(workspace.state(run.name, step), f"the state of step {step} is damaged: {'; '.join(problems)}", record)
    for record in found.beyond:
        step = step_number(record.key[-1])
        absent = ", ".join(map(str, found.absent[:SHOWN]))
        aside(workspace.state(run.name, step), f"no weights of step {absent}, which is before it, are recorded", record)
    for folder in found.unrecorded:
        aside(folder, "it has no record")
