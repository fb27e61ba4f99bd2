"""the missing tasks of stages -> submitit arrays, each in its dependency; or the text that sbatch would get.

submitit writes and launches. An array's index finds its task in the numbers that are pickled for all of them: the tasks
that are missing keep the numbers that they have in the stage.
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
    """A job that works on a stage: one that was there, or one that was submitted now."""

    stage: str
    number: str
    names: tuple[str, ...]
    submission: Submission
    found: bool

    def line(self) -> str:
        """For people."""
        what = "found" if self.found else "submitted"
        names = ", ".join(self.names)
        if len(self.names) > SHOWN:
            names = f"{len(self.names)} tasks: {self.names[0]} ... {self.names[-1]}"
        return f"{self.stage}: {what} job {self.number} ({names}), logs in {self.submission.folder}"


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
            new = _submit_arrays(context, plan, missing, before, longest)
            jobs += [job for job in found + new if job not in jobs]  # both passes of preprocess find the same ones
            before = [job.number for job in found + new]
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
        number = tasks[0].job.label.partition("_")[0]
        _finish(submission, number)
        found.append(Job(submission.stage, number, tuple(task.name for task in tasks), submission, found=True))
    return found


def _finish(submission: Submission, number: str) -> None:
    """Give each task of a job its pickle, and the submission its number, where they are missing."""
    there = {path.name for path in submission.folder.iterdir()}
    pattern: str = JobPaths(submission.folder).submitted_pickle.name
    names = [pattern.replace("%j", submission.label(number, index)) for index in range(len(submission.tasks))]
    if missing := [name for name in names if name not in there]:
        shared = temporary_beside(submission.folder / "tasks.pkl")
        DelayedSubmission(Tasks(submission.arguments, submission.tasks)).dump(shared)
        for name in missing:  # links, as thousands of files take their time and their share of a quota
            (submission.folder / name).hardlink_to(shared)
        shared.unlink()
    submission.record(number)


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
    waits = f"{WAITS[plan.stage]}:{':'.join(before)}" if before else ""
    for start in range(0, len(units), size):
        some = units[start : start + size]
        submission = submissions.create(context, plan.stage, some, plan.flags, plan.planned)
        dependency = ",".join(filter(None, [waits, f"afterany:{jobs[-1].number}" if jobs else ""]))
        number = _launch(context, submission, dependency)
        _finish(submission, number)
        jobs.append(Job(plan.stage, number, submission.names, submission, found=False))
    return jobs


def _launch(context: Context, submission: Submission, dependency: str) -> str:
    executor = submitit.SlurmExecutor(submission.folder)
    executor.update_parameters(**parameters(context, submission, dependency))
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
    foreign = [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]
    kept = {name: os.environ.pop(name) for name in (*SECRETS, *foreign) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def parameters(context: Context, submission: Submission, dependency: str) -> dict[str, Any]:
    """What submitit makes the sbatch script from."""
    cluster, stages = context.cluster, context.cluster.stages
    resources: ArrayStage | TrainStage = getattr(stages, submission.stage)
    more: dict[str, Any] = {"requeue": True, "kill-on-invalid-dep": "yes", **cluster.extra}
    again = [sys.executable, "-m", "pipeline.cli", "again", "--workspace", str(context.workspace.root)]
    found = {
        "job_name": f"mistral-{submission.stage}-{submission.experiment}",
        "comment": submission.comment,
        "time": resources.minutes,
        "mem": f"{resources.memory_gigabytes}GB",
        "signal_delay_s": resources.signal_lead_seconds,
        "array_parallelism": resources.array_width,
        "dependency": dependency or None,
        **{name: getattr(cluster, name) for name in ("account", "partition", "qos", "constraint", "exclude")},
        **_size(resources, cluster),
        "setup": list(cluster.setup),
        "teardown": [f'{shlex.join(again)} --code "$?"'],
        "additional_parameters": more,
    }
    return {name: value for name, value in found.items() if value is not None} | {"wckey": None}


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


def sbatch_text(context: Context, plan: Plan, dependency: str) -> str:
    """The script of a plan's first array, as it would be submitted."""
    units = plan.units[: queue.max_array_size()]
    tasks, names = zip(*units, strict=True)
    folder = context.workspace.root / "jobs" / plan.stage / "NUMBER"
    submission = Submission(folder, plan.stage, context.experiment.name, tasks, names, plan.flags)
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    text: str = submitit_slurm._make_sbatch_string(
        command=command, folder=folder, map_count=len(units) if len(units) > 1 else None,
        **parameters(context, submission, dependency),
    )  # fmt: skip
    return text


def dry_run(context: Context, plans: Sequence[Plan]) -> str:
    """What would be submitted if nothing waits or runs yet."""
    texts, before = [], ""
    for plan in plans:
        if plan.units:
            dependency = f"{WAITS[plan.stage]}:{before}" if before else ""
            tasks = ", ".join(f"{number} = {name}" for number, name in plan.units)
            texts.append(f"# {plan.stage}: {tasks}\n{sbatch_text(context, plan, dependency)}")
            before = plan.stage.upper()
    return "\n".join(texts)
