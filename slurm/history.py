"""the queue, submissions, attempts -> what `status` tells of jobs: which waits or runs, how often, why the last ended.

Asks Slurm once for the queue, and at most once for the accounting: only where a job has ended and neither records nor a
stop file tell how. Reads the submissions that are in the queue and the newest ones of each stage, the folder of the
newest job of each run, and the folders of the first tasks of the other stages that did not end well.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from mistral.manifest import Manifest
from mistral.workspace import Workspace
from pipeline.jobs import EndedTask, Job, Jobs, Past
from slurm import endings, queue, submissions
from slurm.endings import Outcome, Story, Try, story_of
from slurm.submissions import Active, Submission

LOOK_BACK = 20  # submissions of a stage, the newest first, in which the newest job of a task is looked for
SHOWN = 20  # ended tasks of a stage whose stop files are read; of the others Slurm's words are told
ARRAYS = ("preprocess", "export")  # stages whose tasks are no runs
Busy = set[tuple[str, str, str]]  # stage, experiment and name of what waits or runs


class Recorded:
    """The newest submissions of a stage, each read when it is first asked for."""

    def __init__(self, workspace: Workspace, experiment: str | None, stage: str) -> None:
        self._source = submissions.recorded(workspace, experiment, stage, LOOK_BACK)
        self._read: list[Submission] = []
        self._jobs: dict[str, list[str]] = {}

    def __iter__(self) -> Iterator[Submission]:
        yield from self._read  # also what is added meanwhile
        for submission in self._source:
            self._read.append(submission)
            yield submission

    def job_of(self, submission: Submission) -> str | None:
        """Slurm's number of its job; of a chain the last one stands for all."""
        if submission.comment not in self._jobs:
            self._jobs[submission.comment] = submission.jobs()
        return next(reversed(self._jobs[submission.comment]), None)

    def tries(self, name: str) -> Iterator[Try]:
        """The jobs of a task, the newest first."""
        for submission in self:
            if name in submission.names and (job := self.job_of(submission)):
                yield Try(submission, submission.label(job, submission.names.index(name)))


def look(workspace: Workspace, experiment: str | None, runs: Collection[str]) -> Jobs:
    """The jobs of an experiment, or of all in the workspace, and what became of those that have ended.

    Args:
        workspace: from which they were submitted.
        experiment: whose; of all unless given.
        runs: names of the runs.
    """
    try:
        return _look(workspace, experiment, runs)
    except PermissionError as error:  # jobs/ is readable by its owner only
        if not Path(str(error.filename)).is_relative_to(workspace.root / "jobs"):
            raise
        return Jobs(None, None, visible=False)


def _look(workspace: Workspace, experiment: str | None, runs: Collection[str]) -> Jobs:
    # Listed before Slurm is asked: a job that is submitted meanwhile cannot look as if it had ended.
    book = {stage: Recorded(workspace, experiment, stage) for stage in submissions.STAGES}
    planned = next((submission.planned for submission in book["preprocess"]), None) if experiment else None
    known = queue.my_jobs()
    if known is None:
        newest = {run: job for run in runs if (job := next(book["train"].tries(run), None))}
        return Jobs(None, None, {run: _past(job, story_of(job.folder())) for run, job in newest.items()}, planned)
    active = submissions.active(workspace, experiment, known)
    training = sorted(active, key=lambda task: task.job.state == "RUNNING")  # of a chain one runs and others wait
    newest = {task.name: Try(task.submission, task.job.label) for task in training if task.submission.stage == "train"}
    past = {run: _past(newest[run], story_of(newest[run].folder())) for run in runs if run in newest}
    ended, tasks = _what_has_ended(workspace, book, active, runs, experiment)
    running = frozenset(job.label for job in known if job.state == "RUNNING")
    return Jobs([row(task) for task in active], running, past | ended, planned, tasks)


def _past(job: Try, story: Story) -> Past:
    return Past(job.label, story.attempts, story.code, story.reason, last_end=str(story.newest_end.get("reason", "")))


def _what_has_ended(
    workspace: Workspace,
    book: Mapping[str, Recorded],
    active: Sequence[Active],
    runs: Collection[str],
    experiment: str | None,
) -> tuple[dict[str, Past], list[EndedTask]]:
    """What became of the runs and of the other tasks that neither wait nor run."""
    busy = {(task.submission.stage, task.submission.experiment, task.name) for task in active}
    training = {name for stage, _, name in busy if stage == "train"}
    # For a whole workspace, runs that never began are listed with the other tasks.
    names = dict.fromkeys(chain(runs, *([] if experiment else (one.names for one in book["train"]))))
    jobs = {name: book["train"].tries(name) for name in names if name not in training}
    trained = {name: told for name, tries in jobs.items() if (told := list(endings.stories(tries)))}
    others = {stage: ended_tasks(workspace, book[stage], busy, experiment) for stage in ARRAYS}
    accounting = _ask_accounting(workspace, trained, others)
    past, tasks = {}, []
    for name, told in trained.items():
        outcome = endings.settle(told, accounting, workspace)
        if name in runs:
            past[name] = _explained(_past(*told[0]), outcome)
        else:
            tasks += _row_of(name, outcome)
    for found in others.values():
        tasks += judge_tasks(found, accounting, workspace)
    return past, tasks


def row(task: Active) -> Job:
    """A task that waits or runs, in Slurm's words."""
    job = task.job
    release = queue.release_line(job.label, job.reason) if queue.held_by(job.reason) == "Slurm" else ""
    return Job(task.submission.stage, task.name, job.label, job.state.lower(), job.reason, job.nodes, release)


def newest_jobs(
    workspace: Workspace, experiment: str | None, stage: str, names: Collection[str]
) -> dict[str, tuple[str, str]]:
    """The newest job of each task of these names, of those that were submitted lately.

    Returns:
        by name, the job as Slurm's commands call it, and the name of its folder of attempts.
    """
    book = Recorded(workspace, experiment, stage)
    found = {name: next(book.tries(name), None) for name in names}
    return {name: (job.label, job.attempts) for name, job in found.items() if job is not None}


def past_of(workspace: Workspace, label: str, attempts: str) -> Past:
    """How often a job was started, and why its last attempt ended; lists one folder and reads at most one file.

    Args:
        workspace: from which it was submitted.
        label: the job as Slurm's commands call it.
        attempts: the name of its folder of attempts, which is that of its chain where it has one.
    """
    story = story_of(workspace.root / "jobs" / "attempts" / attempts)
    return Past(label, story.attempts, story.code, story.reason)


def _explained(past: Past, outcome: Outcome) -> Past:
    """With what became of a run; a job that ended well before its run was complete has merely stopped."""
    state = "stopped" if outcome.state == "done" else outcome.state
    log = outcome.job.log() if state in ("failed", "unknown") else None
    return replace(past, state=state, reason=outcome.reason, told_by=outcome.job.label, log=log)


# --- tasks that are no runs -------------------------------------------------------------------------------------


def ended_tasks(workspace: Workspace, recorded: Recorded, busy: Busy, experiment: str | None) -> list[list[Try]]:
    """Of each task that neither waits nor runs, its jobs, the newest first; none where all is recorded that they make.

    A submission that cuts the work in another way, or takes all of it, replaces those before it.
    """
    cuts: dict[tuple[str, ...], tuple[str, ...]] = {}  # by what is done (of which seeds and steps), into how many tasks
    tasks: dict[tuple[str, ...], list[Try]] = {}
    done: set[tuple[str, ...]] = set()
    for submission in recorded:
        every = (submission.experiment,)
        scope = (*every, *submission.flags[2:])  # behind --tasks N
        if scope not in cuts and every not in cuts and endings.is_done(submission, workspace):
            done.add(scope)
        if every in done and experiment is not None:
            break
        cut = cuts.get(every) or cuts.setdefault(scope, submission.flags)
        if cut != submission.flags or done & {scope, every} or (job := recorded.job_of(submission)) is None:
            continue
        for index, name in enumerate(submission.names):
            if (submission.stage, submission.experiment, name) not in busy:
                tasks.setdefault((*scope, name), []).append(Try(submission, submission.label(job, index)))
    return list(tasks.values())


def judge_tasks(tasks: Sequence[list[Try]], known: Mapping[str, queue.Ended], workspace: Workspace) -> list[EndedTask]:
    """Those that did not end well; what the accounting says is bad comes first, and its reasons are read first."""
    rows: list[EndedTask] = []
    for tries in sorted(tasks, key=lambda tries: tries[0].label not in known):
        ended = known.get(tries[0].label)
        if ended is not None and ended.state == "COMPLETED":
            continue
        if len(rows) < SHOWN:
            outcome = endings.settle(list(endings.stories(tries)), known, workspace)
        else:
            outcome = Outcome(*endings.judge(Story(tries[0].folder(), 0, {}), ended), tries[0])
        rows += _row_of(tries[0].name, outcome, look_for_log=len(rows) < SHOWN)
    return rows


def _row_of(name: str, outcome: Outcome, *, look_for_log: bool = True) -> list[EndedTask]:
    if outcome.state == "done":
        return []
    job, log = outcome.job, outcome.job.log() if look_for_log else None
    return [EndedTask(job.submission.stage, name, job.label, outcome.state, outcome.reason, log)]


def _ask_accounting(
    workspace: Workspace, trained: Mapping[str, Sequence[tuple[Try, Story]]], others: Mapping[str, list[list[Try]]]
) -> Mapping[str, queue.Ended]:
    """What the accounting says of all jobs of which nothing else tells how they ended, in one call or none."""
    numbers: set[str] = set()
    for run, told in trained.items():
        doubtful = {job.number for job, story in told if story.code is None}
        if doubtful and not Manifest(workspace).path("train", (run, "complete")).exists():
            numbers |= doubtful
    numbers |= {job.number for tasks in others.values() for tries in tasks for job in tries[: endings.FORMER]}
    return (queue.accounting(sorted(numbers, key=int)) if numbers else None) or {}
