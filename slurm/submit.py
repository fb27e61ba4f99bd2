"""the missing tasks of stages -> submitit arrays, each in its dependency; or the text that sbatch would get.

submitit writes and launches. An array's index finds its task in the numbers that are pickled for all of them: the tasks
that are missing keep the numbers that they have in the stage. Where the site forbids requeue, a run is a chain of jobs.
"""

import contextlib
import functools
import itertools
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, FailedSubmissionError, JobPaths
from submitit.slurm import slurm as submitit_slurm

from mistral.config import ArrayStage, Cluster, TrainStage
from mistral.errors import EnvironmentProblem
from mistral.files import temporary_beside
from pipeline.context import Context
from slurm import queue, submissions
from slurm.chain import VARIABLE, Link
from slurm.submissions import Submission
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
        names = ", ".join(self.names)
        if len(self.names) > SHOWN:
            names = f"{len(self.names)} tasks: {self.names[0]} ... {self.names[-1]}"
        return f"{self.stage}: {what} {which} ({names}), logs in {self.submission.folder}"


def submit(context: Context, plans: Sequence[Plan]) -> list[Job]:
    """Submit what is missing and neither waits nor runs already.

    Args:
        context: the experiment, the cluster and the workspace.
        plans: the stages in their order; each waits for the one before it.

    Returns:
        the jobs that do the work, those that were there first.

    Raises:
        EnvironmentProblem: Slurm does not answer, or refuses a job.
    """
    jobs: list[Job] = []
    if not any(plan.units for plan in plans):
        return jobs
    with submissions.alone(context.workspace):
        known = queue.my_jobs()
        if known is None:
            raise EnvironmentProblem(
                "found no answer from squeue, expected Slurm's list of jobs; nothing was submitted\n"
                "  check sinfo and scontrol ping, then run the same command again"
            )
        active = submissions.active(context.workspace, context.experiment.name, known)
        longest = functools.cache(queue.max_array_size)  # asked for once, and only if something is submitted
        before: list[str] = []
        for plan in plans:
            there = [task for task in active if task.submission.stage == plan.stage]
            _refuse_other_cut(plan, there)
            found, busy = _attach(there), {task.task for task in there}
            missing = [unit for unit in plan.units if unit[0] not in busy]
            chains = context.cluster.jobs_in_chain(plan.stage) > 1
            if chains:
                new = _submit_chains(context, plan, missing, before)
            else:
                new = _submit_arrays(context, plan, missing, before, longest)
            jobs += [job for job in found + new if job not in jobs]  # both passes of preprocess find the same ones
            before = _numbers(found + new)
    return jobs


def _refuse_other_cut(plan: Plan, there: Sequence[submissions.Active]) -> None:
    """A task's number means the same as in the jobs that are there, or nothing is submitted.

    Raises:
        EnvironmentProblem: these jobs cut the stage in another way.
    """
    others = [task for task in there if task.submission.flags != plan.flags and plan.stage != "train"]
    if others:
        raise EnvironmentProblem(
            f"{plan.stage}: found job {others[0].job.label} with {' '.join(others[0].submission.flags)}, expected "
            f"{' '.join(plan.flags)}\n  wait for it, cancel it, or give the same options"
        )


def _attach(active: Sequence[submissions.Active]) -> list[Job]:
    """Jobs that wait or run already; what a submission that was interrupted left undone is done now."""
    found = []
    for submission, group in itertools.groupby(active, key=lambda task: task.submission):
        tasks = list(group)
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


def _submit_arrays(
    context: Context,
    plan: Plan,
    units: Sequence[tuple[int, str]],
    before: Sequence[str],
    longest: Callable[[], int],
) -> list[Job]:
    """Arrays no longer than Slurm allows, one after the other, so that array_width holds for all of them together."""
    size = longest() if units else 1
    jobs: list[Job] = []
    for start in range(0, len(units), size):
        some = units[start : start + size]
        submission = submissions.create(context, plan.stage, some, plan.flags, plan.planned)
        waits = [waits_for(WAITS[plan.stage], before), waits_for("afterany", _numbers(jobs[-1:]))]
        numbers = (_launch(context, submission, waits),)
        _finish(submission, numbers)
        jobs.append(Job(plan.stage, numbers, submission.names, submission, found=False))
    return jobs


def _submit_chains(context: Context, plan: Plan, units: Sequence[tuple[int, str]], before: Sequence[str]) -> list[Job]:
    """A chain for each task; each waits for the one `array_width` places before it, so that no more run at a time."""
    width, chains = context.cluster.stages.train.array_width, list[Job]()
    for place, unit in enumerate(units):
        submission = submissions.create(context, plan.stage, [unit], plan.flags)
        ahead = _numbers(chains[place - width : place - width + 1]) if place >= width else []
        waits = [waits_for(WAITS[plan.stage], before), waits_for("afterany", ahead), "singleton"]
        numbers = tuple(_launch(context, submission, waits, link) for link in range(submission.links))
        _finish(submission, numbers)
        chains.append(Job(plan.stage, numbers, submission.names, submission, found=False))
    return chains


def waits_for(kind: str, jobs: Sequence[str]) -> str:
    """`afterok:12:13`; empty where there is nothing to wait for."""
    return f"{kind}:{':'.join(jobs)}" if jobs else ""


def _launch(context: Context, submission: Submission, waits: Sequence[str], link: int = 0) -> str:
    executor = submitit.SlurmExecutor(submission.folder, python=python_of(context))
    executor.update_parameters(**parameters(context, submission, waits, link))
    if len(submission.tasks) > 1:
        executor.parameters["map_count"] = len(submission.tasks)
    try:
        with plain_environment():
            # What submit_array does, but for its pickles: it writes one for each of thousands of tasks.
            job = executor._submit_command(executor._submitit_command_str)
    except (FailedSubmissionError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"{submission.stage}: found that Slurm refuses the job: {str(error).strip()}\n"
            f"  check the cluster file {context.cluster.name}: partition, account, time and resources"
        ) from error
    return str(job.job_id)


@contextlib.contextmanager
def plain_environment() -> Iterator[None]:
    """sbatch hands the environment on to the job, and keeps it: without tokens, and without another job's numbers."""
    foreign = [name for name in os.environ if name.startswith(("SLURM_", VARIABLE)) and name != "SLURM_CONF"]
    kept = {name: os.environ.pop(name) for name in (*SECRETS, *foreign) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def parameters(context: Context, submission: Submission, waits: Sequence[str], link: int = 0) -> dict[str, Any]:
    """What submitit makes the sbatch script from.

    Args:
        context: the cluster and the workspace.
        submission: what is submitted.
        waits: the dependencies of the job; empty ones do not count.
        link: which job of a chain it is.
    """
    cluster, stages = context.cluster, context.cluster.stages
    resources: ArrayStage | TrainStage = getattr(stages, submission.stage)
    requeue = "requeue" if cluster.requeue else "no-requeue"
    more: dict[str, Any] = {requeue: True, "kill-on-invalid-dep": "yes", **cluster.extra}
    name, chain = f"mistral-{submission.stage}-{submission.experiment}", list[str]()
    if submission.links > 1:
        name, chain = f"{name}-{submission.comment}", [Link(submission.comment, link, submission.links).shell_line()]
    again = f"{python_of(context)} -m pipeline.cli again --workspace {shlex.quote(str(context.workspace.root))}"
    found = {
        "job_name": name,
        "comment": submission.comment,
        "time": resources.minutes,
        "mem": f"{resources.memory_gigabytes}GB",
        "signal_delay_s": resources.signal_lead_seconds,
        "array_parallelism": resources.array_width,
        "dependency": ",".join(filter(None, waits)) or None,
        **{name: getattr(cluster, name) for name in ("account", "partition", "qos", "constraint", "exclude")},
        **_size(resources, cluster),
        "setup": [*cluster.setup, *chain],
        "teardown": [f'{again} --code "$?"'],
        "additional_parameters": more,
    }
    return {name: value for name, value in found.items() if value is not None} | {"wckey": None}


def python_of(context: Context) -> str:
    """The shell words that start Python on a node."""
    return context.cluster.python or shlex.quote(sys.executable)


def _size(resources: ArrayStage | TrainStage, cluster: Cluster) -> dict[str, Any]:
    """Nodes, ranks, processors and GPUs of one task."""
    cpus = resources.cpus_per_rank if isinstance(resources, TrainStage) else resources.cpus_per_task
    # A rank that fails takes the others with it; srun does not take cpus-per-task from sbatch.
    arguments = ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}"]
    size: dict[str, Any] = {"nodes": 1, "ntasks_per_node": 1, "cpus_per_task": cpus, "srun_args": arguments}
    if isinstance(resources, TrainStage):
        size |= {"nodes": resources.nodes, "ntasks_per_node": resources.ranks_per_node}
        if cluster.gres:
            size["gres"] = cluster.gres
        elif resources.gpus_per_node:
            size["gpus_per_node"] = resources.gpus_per_node
    return size


def sbatch_text(context: Context, plan: Plan, waits: Sequence[str]) -> str:
    """The script of a plan's first array, or of the first job of its first chain, as it would be submitted."""
    links = context.cluster.jobs_in_chain(plan.stage)
    units = plan.units[: queue.max_array_size() if links == 1 else 1]
    tasks, names = zip(*units, strict=True)
    folder = context.workspace.root / "jobs" / plan.stage / "NUMBER"
    submission = Submission(folder, plan.stage, context.experiment.name, tasks, names, plan.flags, links=links)
    command = f"{python_of(context)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    text: str = submitit_slurm._make_sbatch_string(
        command=command, folder=folder, map_count=len(units) if len(units) > 1 else None,
        **parameters(context, submission, waits),
    )  # fmt: skip
    return text


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
