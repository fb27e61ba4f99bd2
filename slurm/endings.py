"""the jobs of a task that has ended, their stop files, the accounting -> failed, stopped, done or unknown, and why.

The stop file of the newest job is believed first, then Slurm's accounting, which may be off. A job that was cancelled
before it recorded anything changes nothing: the reason of the job before it still holds.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mistral.config import Experiment, load_experiment
from mistral.dataset import SEAL
from mistral.errors import MistralError, Stopped
from mistral.files import read_json
from mistral.manifest import Manifest
from mistral.workspace import Workspace
from slurm.attempt import Goal
from slurm.queue import Ended
from slurm.submissions import Submission

FORMER = 5  # jobs of a task, cancelled one after the other, behind which an older reason is still seen
ATTEMPT = re.compile(r"^(\d{4,})\.(begin|end)$")
MAY_COME_BACK = ("PENDING", "RUNNING", "REQUEUED", "RESIZING", "SUSPENDED", "COMPLETING", "STOPPED")
NOT_TOLD = "it has ended, and Slurm's accounting does not tell how"


@dataclass(frozen=True)
class Try:
    """A job that was submitted for a task."""

    submission: Submission
    label: str

    @property
    def number(self) -> str:
        """That of the job, or of its array."""
        return self.label.partition("_")[0]

    @property
    def name(self) -> str:
        """What its task is called."""
        return self.submission.names[self.submission.index_of(self.label)]

    @property
    def attempts(self) -> str:
        """The name of the folder of its attempts."""
        return self.submission.attempts_of(self.label)

    def folder(self) -> Path:
        """Where its attempts left their files."""
        return self.submission.folder.parents[1] / "attempts" / self.attempts

    def log(self) -> str | None:
        """The path of its log, of a chain the newest one; None if none was written."""
        from submitit.core.utils import JobPaths

        labels = [self.label] if self.submission.links == 1 else reversed(self.submission.jobs())
        paths = (JobPaths(self.submission.folder, label, 0).stderr for label in labels)
        return next((str(path) for path in paths if path.exists()), None)


@dataclass(frozen=True)
class Story:
    """What the attempts of a job left behind."""

    folder: Path
    attempts: int
    end: Mapping[str, Any]  # the last stop file; empty if the last attempt left none
    newest_end: Mapping[str, Any] = field(default_factory=dict)  # that of an earlier attempt where the last left none

    @property
    def code(self) -> int | None:
        """The exit code for which a person is needed, or 75."""
        code = self.end.get("code")
        return code if isinstance(code, int) else None

    @property
    def reason(self) -> str:
        """Why the last attempt ended; empty if it left no reason."""
        return str(self.end.get("reason", ""))

    def got_on(self) -> bool:
        """Whether anything was recorded from the beginning of its first attempt to the end of its last one."""
        begun = read_or_empty(self.folder / "0000.begin").get("progress")
        return None not in (begun, self.end.get("progress")) and begun != self.end["progress"]


@dataclass(frozen=True)
class Outcome:
    """What became of a task: failed, stopped, done or unknown; why, and the job that says so."""

    state: str
    reason: str
    job: Try


def story_of(folder: Path) -> Story:
    """What the attempts of a job left behind; lists one folder and reads at most one file."""
    try:
        files = {path.name: int(match[1]) for path in folder.iterdir() if (match := ATTEMPT.match(path.name))}
    except FileNotFoundError:
        files = {}
    last = max(files.values(), default=-1)
    ended = max((number for name, number in files.items() if name.endswith(".end")), default=-1)
    told = read_or_empty(folder / f"{ended:04d}.end") if ended >= 0 else {}
    return Story(folder, last + 1, told if ended == last else {}, told)


def read_or_empty(path: Path) -> dict[str, Any]:
    """A file of an attempt; empty if it is damaged or not there."""
    try:
        told = read_json(path)
    except (FileNotFoundError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def stories(tries: Iterable[Try]) -> Iterator[tuple[Try, Story]]:
    """The newest job of a task; and those before it as long as they may have been cancelled with nothing done."""
    for number, job in enumerate(tries):
        story = story_of(job.folder())
        yield job, story
        stopped = story.code == Stopped.exit_code and not story.got_on()
        if number == FORMER or (story.attempts and not stopped):
            return


def settle(told: Sequence[tuple[Try, Story]], known: Mapping[str, Ended], workspace: Workspace) -> Outcome:
    """What became of a task.

    Args:
        told: what `stories` gave, at least one.
        known: what the accounting says, by job; empty where it does not answer.
        workspace: whose records tell whether an older reason still holds.
    """
    newest: Outcome | None = None
    for job, story in told:
        state, reason = judge(story, known.get(job.label))
        holds = state != "failed" or not _outdated(job, story, workspace)
        if newest is None:
            newest = Outcome(state, reason, job) if holds else Outcome("stopped", "", job)
        elif state == "failed" and holds:
            return Outcome(state, reason, job)
        if state in ("failed", "done") or (state == "unknown" and story.attempts):
            break
    if newest is None:
        raise ValueError("found no job of a task, expected one")
    return newest


def judge(story: Story, ended: Ended | None) -> tuple[str, str]:
    """State and reason of one job that is not in the queue."""
    if story.code is not None:
        return ("stopped" if story.code == Stopped.exit_code else "failed"), story.reason
    if ended is None:
        return ("failed", story.reason) if story.reason else ("unknown", NOT_TOLD)
    if ended.state in MAY_COME_BACK:
        return "unknown", f"Slurm says {ended.state}, and does not list it"
    reason = story.reason or ended.words()
    if ended.state == "COMPLETED":
        return "done", reason
    asked = ended.state == "CANCELLED" or ended.code == Stopped.exit_code
    return ("stopped" if asked else "failed"), reason


def _outdated(job: Try, story: Story, workspace: Workspace) -> bool:
    """Whether a run has recorded something since a job of it failed."""
    if job.submission.stage != "train" or "progress" not in story.end:
        return False
    now = Goal("train", ((job.name, "weights"), (job.name, "state")), 1).progress(Manifest(workspace))
    return bool(now != story.end["progress"])


def is_done(submission: Submission, workspace: Workspace) -> bool:
    """Whether the records say that nothing is left of what preprocess or export was submitted for, whoever did it."""
    try:
        experiment = load_experiment(str(submission.folder / "experiment.yaml"))
    except MistralError:
        return False
    manifest = Manifest(workspace)
    if submission.stage == "preprocess":
        return all(manifest.path("preprocess", (name, SEAL)).exists() for name in experiment.dataset_names())
    return all(wanted <= set(manifest.names("export", (run,))) for run, wanted in _exports(submission, experiment))


def _exports(submission: Submission, experiment: Experiment) -> Iterator[tuple[str, set[str]]]:
    """The names of the exports of each run that an export was submitted for."""
    given: dict[str, list[str]] = {"--seed": [], "--step": []}
    for option, value in zip(submission.flags, submission.flags[1:], strict=False):
        given.get(option, []).append(value)
    steps = given["--step"] or map(str, experiment.scheduled_steps())
    wanted = {f"checkpoint-{step}" for step in steps}
    for seed in given["--seed"] or experiment.seeds:
        if seed in experiment.seeds:
            yield experiment.run_name(seed), wanted
