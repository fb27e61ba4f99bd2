"""jobs that wait or run, the configs of now -> the values that differ for these jobs, with which nothing is submitted.

A submission keeps the configs that its tasks read (slurm/submissions.py). What counts is what decides the work of its
stage, and what its job was submitted with. Seeds do not count: a run is known by its name, which holds its seeds.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mistral.config import Cluster, Experiment, load_cluster, load_experiment
from mistral.errors import ConfigError
from pipeline.context import Context
from slurm.submissions import Active, Submission, by_submission

Values = dict[str, Any]  # by dotted key
# Keys of the cluster file that decide no job: its name, and into how many tasks a stage is cut, which is in the name of
# each task.
UNUSED = {"name", "executor", "stages"}


def refuse(context: Context, there: Sequence[Active], wanted: Collection[str], flags: Sequence[str]) -> None:
    """Refuse to attach to jobs whose values differ from those of now.

    Args:
        context: the configs of now.
        there: the tasks of one stage that wait or run.
        wanted: the names of the tasks that are asked for now. Of the others only the values that all runs of an
            experiment share are compared.
        flags: more words of the command line of each task.

    Raises:
        ConfigError: names the first job that differs, the values, and what to do.
    """
    for submission, tasks in by_submission(there):
        ours = submission.stage != "train" or any(task.name in wanted for task in tasks)
        if lines := differences(context, submission, flags, ours=ours):
            raise ConfigError(_refusal(context, tasks, lines))


def differences(context: Context, submission: Submission, flags: Sequence[str], *, ours: bool) -> list[str]:
    """`training.max_steps: was 40, is 80`: what a submission was made with, and what the command says now.

    Args:
        context: the configs of now.
        submission: one of the same stage.
        flags: more words of the command line of each task.
        ours: whether its tasks are asked for, or only belong to the same experiment.
    """
    then = load_experiment(str(submission.folder / "experiment.yaml"))
    if not ours:
        return _differ(_flat(then.shared_sections()), _flat(context.experiment.shared_sections()))
    stage, cluster = submission.stage, load_cluster(str(submission.folder / "cluster.yaml"))
    lines = _differ(of_experiment(then, stage), of_experiment(context.experiment, stage))
    lines += _differ(of_cluster(cluster, stage), of_cluster(context.cluster, stage), "cluster file: ")
    added = [flag for flag in flags if flag not in submission.flags]  # a job may have more than is asked for
    return lines + [f"{flag}: was not given, is given" for flag in added if stage == "train"]


def of_experiment(experiment: Experiment, stage: str) -> Values:
    """The values of an experiment that decide what a stage does."""
    values = experiment.model_dump(mode="json")
    if stage == "preprocess":
        sets = {name: one.data.identity() for name, one in experiment.evaluation_sets().items()}
        found: Values = {"data": experiment.data.identity(), "evaluation": sets, "folder": str(experiment.path(""))}
    elif stage == "train":
        sections = {name: values[name] for name in ("checkpoints", "evaluation", "training")}
        found = experiment.shared_sections() | sections
    else:
        found = experiment.shared_sections()
        found |= {"checkpoints": {"schedule": values["checkpoints"]["schedule"]}}
        found |= {"export": {"dtype": values["export"]["dtype"]}}
    return _flat(found)


def of_cluster(cluster: Cluster, stage: str) -> Values:
    """The values of a cluster file that the job of a stage was submitted with, or that its tasks read."""
    values = cluster.model_dump(mode="json")
    found = {name: value for name, value in values.items() if name not in UNUSED}
    resources = {name: value for name, value in values["stages"][stage].items() if name != "tasks"}
    if stage != "train":
        del found["gres"]
    elif cluster.requeue:
        del resources["chain_jobs"]
    return _flat({**found, "stages": {stage: resources}})


def _flat(values: Mapping[str, Any], before: str = "") -> Values:
    found: Values = {}
    for name, value in values.items():
        inner = _flat(value, f"{before}{name}.") if isinstance(value, Mapping) and value else {f"{before}{name}": value}
        found |= inner
    return found


def _differ(then: Values, now: Values, where: str = "") -> list[str]:
    keys = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    return [f"{where}{key}: was {_told(then.get(key))}, is {_told(now.get(key))}" for key in keys]


def _told(value: Any) -> str:
    return "absent" if value is None else str(value)


def _refusal(context: Context, tasks: Sequence[Active], lines: Sequence[str]) -> str:
    submission, names = tasks[0].submission, list(dict.fromkeys(task.name for task in tasks))
    job = tasks[0].job.label.partition("_")[0]
    which = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    options, others = ["--stage", submission.stage], ""
    if submission.stage == "train":
        seeds = load_experiment(str(submission.folder / "experiment.yaml"))
        runs = {seeds.run_name(seed): seed for seed in seeds.seeds}
        options = [word for name in names for word in ("--seed", runs[name])]
        others = "; or leave these seeds out: --seed chooses others"
    values = "".join(f"  {line}\n" for line in lines)
    return (
        f"{submission.stage}: found job {job} ({which}) in the queue with other values than are given now:\n{values}"
        f"  expected the values that it was submitted with (kept in {submission.folder}); nothing was submitted\n"
        f"  give the old values back, and the same command attaches to the job{others}; or cancel it, then run this "
        f"again:\n    {context.experiment.command('cancel', context.workspace.root, *options)}"
    )


def covers(context: Context, submission: Submission, flags: Sequence[str], before: Sequence[str]) -> bool:
    """Whether a task of export means the same checkpoints as one of now, and waits for all training that is on its way.

    Args:
        context: the experiment of now.
        submission: whose task it is.
        flags: how the stage is cut now, and which seeds and steps are chosen.
        before: the jobs of training that wait or run.
    """
    then = load_experiment(str(submission.folder / "experiment.yaml"))
    chosen = [seed for flag, seed in itertools.pairwise(flags) if flag == "--seed"]
    same = submission.flags == tuple(flags) and set(before) <= set(submission.after)
    return same and _runs(then, chosen) == _runs(context.experiment, chosen)


def _runs(experiment: Experiment, chosen: Sequence[str]) -> set[str]:
    return {experiment.run_name(seed) for seed in experiment.seeds if not chosen or seed in chosen}
