"""the missing tasks of stages -> Slurm arrays, each in its dependency; or the text that sbatch would get.

An array's index finds its task in the numbers that are pickled for all of them: the tasks that are missing keep the
numbers that they have in the stage. Where the site forbids requeue, a run is a chain of jobs.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from submitit.core.utils import DelayedSubmission, JobPaths

from mistral.errors import EnvironmentProblem, MistralError, Stopped
from mistral.files import temporary_beside
from pipeline.context import Context
from slurm import changes, held, lock, queue, refusals, script, submissions
from slurm.chain import VARIABLE
from slurm.submissions import Active, Submission
from slurm.task import Tasks

# How a plan waits for the one before it: preprocess for its own first pass, train for a whole dataset, export for
# whatever was trained.
WAITS = {"preprocess": "afterok", "train": "afterok", "export": "afterany"}
SHOWN = 10  # names of tasks in a line
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")


@dataclass(frozen=True)
class Plan:
    """The tasks of one stage that are missing: their numbers and names, and the flags of their command lines."""

    stage: str
    units: tuple[tuple[int, str], ...]
    flags: tuple[str, ...]
    planned: int | None = None  # units of the stage in all, where that is not told by the config


@dataclass(frozen=True)
class Job:
    """A job, or a chain, that works on a stage: one that was there, or one that was submitted now."""

    stage: str
    numbers: tuple[str, ...]  # several of a chain
    names: tuple[str, ...]
    submission: Submission
    found: bool

    @property
    def number(self) -> str:
        """The first."""
        return self.numbers[0]

    def line(self) -> str:
        """For people."""
        what = "found" if self.found else "submitted"
        which = f"job {self.number}" if len(self.numbers) == 1 else f"jobs {' -> '.join(self.numbers)}"
        return f"{self.stage}: {what} {which} ({listed(self.names)}), logs in {self.submission.folder}"


def listed(names: Sequence[str]) -> str:
    """The names of tasks in a line; the first and the last of many."""
    return ", ".join(names) if len(names) <= SHOWN else f"{len(names)} tasks: {names[0]} ... {names[-1]}"


class PartlySubmitted(EnvironmentProblem):
    """Slurm refused a job after it had taken others, which stay."""

    def __init__(self, message: str, jobs: Sequence[Job]) -> None:
        super().__init__(message)
        self.jobs = tuple(jobs)


@dataclass
class Submitting:
    """One call of `submit`: what it works on, and the jobs that were found or submitted so far."""

    context: Context
    jobs: list[Job] = field(default_factory=list)

    @functools.cached_property
    def longest(self) -> int:
        """How long an array may be; asked for once, and only if something is submitted."""
        return queue.max_array_size()


def submit(context: Context, plans: Sequence[Plan]) -> list[Job]:
    """Submit what is missing and neither waits nor runs already.

    Args:
        context: the experiment, the cluster and the workspace.
        plans: the stages in their order; each waits for the one before it.

    Returns:
        the jobs that do the work, those that were there first.

    Raises:
        ConfigError: jobs that wait or run were submitted with other values.
        EnvironmentProblem: Slurm does not answer, or refuses a job.
        PartlySubmitted: it refuses a job after it has taken others.
    """
    if not any(plan.units for plan in plans):
        return []
    doing = Submitting(context)
    with lock.alone(context.workspace):
        known = queue.my_jobs()
        if known is None:
            raise EnvironmentProblem(
                "found no answer from squeue, expected Slurm's list of jobs; nothing was submitted\n"
                "  check sinfo and scontrol ping, then run the same command again"
            )
        active = submissions.active(context.workspace, context.experiment.name, known)
        there = {plan.stage: [task for task in active if task.submission.stage == plan.stage] for plan in plans}
        for plan in plans:  # all of them, before anything is submitted
            _refuse_others(context, plan, there[plan.stage])
        held.release([task for plan in dict.fromkeys(plans) for task in there[plan.stage]], context.progress)
        before: list[str] = []
        try:
            for plan in plans:
                before = _submit_plan(doing, plan, there[plan.stage], before)
        except (MistralError, OSError) as error:
            if isinstance(error, Stopped) or all(job.found for job in doing.jobs):
                raise
            raise PartlySubmitted(f"{error}\n{_left_out(plans, doing.jobs)}", doing.jobs) from error
    return doing.jobs


def _refuse_others(context: Context, plan: Plan, there: Sequence[Active]) -> None:
    """Refuse to work beside jobs that mean something else by the names of their tasks.

    Raises:
        ConfigError: they were submitted with other values.
        EnvironmentProblem: they cut the stage in another way.
    """
    if not plan.units:
        return
    changes.refuse(context, there, {name for _, name in plan.units}, plan.flags)
    others = [task for task in there if task.submission.flags != plan.flags and plan.stage == "preprocess"]
    if others:
        raise EnvironmentProblem(
            f"{plan.stage}: found job {others[0].job.label} with {' '.join(others[0].submission.flags)}, expected "
            f"{' '.join(plan.flags)}\n  wait for it, cancel it, or give the same options"
        )


def _left_out(plans: Sequence[Plan], jobs: Sequence[Job]) -> str:
    """What of some plans is submitted, and what is not."""
    lines = []
    for plan in dict.fromkeys(plans):
        names = {name for job in jobs if job.stage == plan.stage for name in job.names}
        if left := [name for _, name in plan.units if name not in names]:
            lines.append(f"{plan.stage} ({listed(left)})")
    new = ", ".join(f"{job.stage} job {' -> '.join(job.numbers)}" for job in jobs if not job.found)
    rest = f"not submitted: {', '.join(lines)}; " if lines else ""
    return f"  submitted before that, and left in the queue: {new}\n  {rest}the same command submits what is missing"


def _submit_plan(doing: Submitting, plan: Plan, there: Sequence[Active], before: Sequence[str]) -> list[str]:
    """Attach to the jobs of a stage, and submit what they leave out.

    Args:
        doing: receives each job as soon as it is known.
        plan: the missing tasks.
        there: the tasks of the stage in the queue.
        before: the jobs that the plan waits for.

    Returns:
        Slurm's numbers of the jobs that work on the plan.
    """
    found = _attach(there)
    doing.jobs += [job for job in found if job not in doing.jobs]  # both passes of preprocess find the same ones
    known = len(doing.jobs)
    groups = list(submissions.by_submission(there))
    covering = [submission for submission, _ in groups if _covers(doing.context, plan, submission, before)]
    busy = {task.name for submission, tasks in groups if submission in covering for task in tasks}
    if missing := [unit for unit in plan.units if unit[1] not in busy]:
        # Two tasks never export the same checkpoint at the same time.
        beside = [job for job in found if plan.stage == "export" and job.submission not in covering]
        chains = doing.context.cluster.jobs_in_chain(plan.stage) > 1
        (_submit_chains if chains else _submit_arrays)(doing, plan, missing, [*before, *_numbers(beside)])
    wanted = {name for _, name in plan.units}
    others = [job for job in found if plan.stage == "train" and wanted.isdisjoint(job.names)]  # of other seeds
    return _numbers([job for job in [*found, *doing.jobs[known:]] if job not in others])


def _covers(context: Context, plan: Plan, submission: Submission, before: Sequence[str]) -> bool:
    """Whether tasks in the queue do the work of those with the same names in a plan that waits for other jobs."""
    if plan.stage == "export":
        return changes.covers(context, submission, plan.flags, before)
    # The second pass of preprocess has the names of the first, for which it waits.
    return plan.stage == "train" or not before or bool(submission.after)


def _attach(active: Sequence[Active]) -> list[Job]:
    """Jobs that wait or run already; completes submissions that were interrupted."""
    found = []
    for submission, tasks in submissions.by_submission(active):
        numbers = tuple(sorted({task.job.label.partition("_")[0] for task in tasks}, key=int))
        _finish(submission, numbers)
        names = tuple(dict.fromkeys(task.name for task in tasks))
        found.append(Job(submission.stage, numbers, names, submission, found=True))
    return found


def _finish(submission: Submission, numbers: Sequence[str]) -> None:
    """Give each task of each job its pickle, and the submission its jobs' numbers, where they are missing."""
    there = {path.name for path in submission.folder.iterdir()}
    pattern: str = JobPaths(submission.folder).submitted_pickle.name
    labels = [submission.label(number, index) for number in numbers for index in range(len(submission.tasks))]
    if missing := [name for name in (pattern.replace("%j", label) for label in labels) if name not in there]:
        shared = temporary_beside(submission.folder / "tasks.pkl")
        DelayedSubmission(Tasks(submission.arguments, submission.tasks)).dump(shared)
        for name in missing:  # links, as thousands of files take their time and their share of a quota
            (submission.folder / name).hardlink_to(shared)
        shared.unlink()
    submission.record(numbers)


def _numbers(jobs: Sequence[Job]) -> list[str]:
    return [number for job in jobs for number in job.numbers]


def _submit_arrays(doing: Submitting, plan: Plan, units: Sequence[tuple[int, str]], before: Sequence[str]) -> None:
    """Arrays no longer than Slurm allows, one after the other, so that array_width holds for all of them together."""
    last: list[str] = []
    for start in range(0, len(units), doing.longest):
        some = units[start : start + doing.longest]
        submission = submissions.create(doing.context, plan.stage, some, plan.flags, planned=plan.planned, after=before)
        waits = [waits_for(WAITS[plan.stage], before), waits_for("afterany", last)]
        last = [_launch(doing.context, submission, waits)]
        doing.jobs.append(Job(plan.stage, tuple(last), submission.names, submission, found=False))
        _finish(submission, last)


def _submit_chains(doing: Submitting, plan: Plan, units: Sequence[tuple[int, str]], before: Sequence[str]) -> None:
    """A chain for each task; each waits for the one `array_width` places before it, so that no more run at a time."""
    width, first = doing.context.cluster.stages.train.array_width, len(doing.jobs)
    for place, unit in enumerate(units):
        submission = submissions.create(doing.context, plan.stage, [unit], plan.flags, after=before)
        ahead = _numbers(doing.jobs[first + place - width :][:1]) if place >= width else []
        waits = [waits_for(WAITS[plan.stage], before), waits_for("afterany", ahead), "singleton"]
        numbers: list[str] = []
        try:
            for link in range(submission.links):
                numbers.append(_launch(doing.context, submission, waits, link))
        finally:
            if numbers:  # a chain that was cut short works as well, and ends sooner
                doing.jobs.append(Job(plan.stage, tuple(numbers), submission.names, submission, found=False))
                _finish(submission, numbers)


def waits_for(kind: str, jobs: Sequence[str]) -> str:
    """`afterok:12:13`; empty where there is nothing to wait for."""
    return f"{kind}:{':'.join(jobs)}" if jobs else ""


def _launch(context: Context, submission: Submission, waits: Sequence[str], link: int = 0) -> str:
    path = temporary_beside(submission.folder / "submission.sh")
    path.write_text(script.text_of(context, submission, waits, link), encoding="utf-8")
    with plain_environment():
        answer = queue.ask("sbatch", str(path))
    number = refusals.job_number(answer, submission.stage, context.cluster.name)
    path.rename(submission.folder / f"{number}_submission.sh")
    return number


@contextlib.contextmanager
def plain_environment() -> Iterator[None]:
    """sbatch hands the environment on to the job, and keeps it: without tokens, and without another job's numbers."""
    foreign = [name for name in os.environ if name.startswith(("SLURM_", VARIABLE)) and name != "SLURM_CONF"]
    kept = {name: os.environ.pop(name) for name in (*SECRETS, *foreign) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def sbatch_text(context: Context, plan: Plan, waits: Sequence[str]) -> str:
    """The script of a plan's first array, or of the first job of its first chain, as it would be submitted."""
    links = context.cluster.jobs_in_chain(plan.stage)
    units = plan.units[: queue.max_array_size() if links == 1 else 1]
    tasks, names = zip(*units, strict=True)
    folder = context.workspace.root / "jobs" / plan.stage / "NUMBER"
    submission = Submission(folder, plan.stage, context.experiment.name, tasks, names, plan.flags, links=links)
    return script.text_of(context, submission, waits)


def dry_run(context: Context, plans: Sequence[Plan]) -> str:
    """What would be submitted if nothing waits or runs yet."""
    texts, before = [], ""
    for plan in plans:
        if plan.units:
            links = context.cluster.jobs_in_chain(plan.stage)
            waits = [waits_for(WAITS[plan.stage], [before] if before else []), "singleton" if links > 1 else ""]
            tasks = ", ".join(f"{number} = {name}" for number, name in plan.units)
            chains = f"# {links} jobs for each, one after another; the first of them:\n" if links > 1 else ""
            texts.append(f"# {plan.stage}: {tasks}\n{chains}{sbatch_text(context, plan, waits)}")
            before = plan.stage.upper()
    return "\n".join(texts)
