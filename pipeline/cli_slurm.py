"""command line -> jobs in Slurm: stages submitted and followed, logs, cancel; cli.py adds these to its commands."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mistral.errors import EnvironmentProblem
from mistral.numbers import counted
from pipeline.options import Command, debug_option, json_option, seed_option, set_option, workspace_option

if TYPE_CHECKING:  # nothing heavy is imported before a command runs: --help answers in half a second
    from mistral.corpus import Plan as Corpus
    from pipeline.context import Context
    from pipeline.train import TrainOptions
    from slurm.submit import Job

Function = TypeVar("Function", bound=Callable[..., Any])
STAGES = ("preprocess", "train", "export")
TRAIN_FLAGS = ("allow_drift", "steal_lease", "from_earlier_state", "from_step_0")
WORKS_HERE = ("task", "peek")  # options with which a command works here, whatever the cluster
stage_option = click.option("--stage", "stage_name", type=click.Choice(STAGES), help="Only this stage.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print what sbatch would get, and submit nothing.")


def submits(*stages: str) -> Callable[[Function], Callable[..., None]]:
    """Turn the stages of a command into jobs where the cluster file says Slurm; one task is an attempt, made here."""

    def decorate(function: Function) -> Callable[..., None]:
        @functools.wraps(function)
        def call(context: "Context", *, dry_run: bool, **options: Any) -> None:
            if options.get("steps") and options.get("all_steps"):
                raise click.UsageError("--step and --all-steps exclude each other; give one of them")
            here = (
                options.get("fetch_only")
                or options.get("push")
                or any(options.get(name) is not None for name in WORKS_HERE)
            )
            if context.cluster.executor == "slurm" and not here:
                submit_stages(context, stages, options, dry_run)
            elif dry_run:
                raise click.UsageError("found --dry-run where nothing is submitted, expected a --cluster of Slurm")
            else:
                with one_attempt(context, stages[0], options.get("task")):
                    function(context, **options)

        decorated: Callable[..., None] = call
        return dry_run_option(decorated)

    return decorate


@contextlib.contextmanager
def one_attempt(context: "Context", stage: str, task: int | None) -> Iterator[None]:
    """Do a task here: in a Slurm job its ranks meet and its attempts are counted; elsewhere nothing happens."""
    if task is None:
        yield
        return
    from slurm.attempt import attempt
    from slurm.plans import goal_of

    with attempt(context.workspace, goal_of(context, stage, task)):
        yield


def train_flags(options: Mapping[str, Any]) -> list[str]:
    """`--allow-drift`: the flags of train that were given."""
    return [f"--{name.replace('_', '-')}" for name in TRAIN_FLAGS if options.get(name)]


def train_options(flags: Mapping[str, bool]) -> "TrainOptions":
    """What the command line says, and who owns a run."""
    from pipeline.train import TrainOptions
    from slurm.attempt import owner, owner_is_alive

    return TrainOptions(**flags, owner=owner, owner_is_alive=owner_is_alive)


def submit_stages(context: "Context", stages: Sequence[str], options: dict[str, Any], dry_run: bool) -> None:
    """Submit what is missing of some stages, each waiting for the one before it; with --wait follow to the end.

    Args:
        context: what, and where.
        stages: in their order.
        options: of the command line.
        dry_run: print what would be submitted, and submit nothing.

    Raises:
        ConfigError: the workspace does not fit Slurm, or jobs were submitted with other values.
        EnvironmentProblem: Slurm does not answer, or refuses a job; the jobs that it took before are printed.
        Findings: the jobs have ended and something is still missing; gives the reasons.
    """
    from pipeline.refusals import refuse
    from slurm import plans
    from slurm.script import refuse_unfit
    from slurm.submit import PartlySubmitted, submit
    from slurm.submit import dry_run as text_of

    refuse_unfit(context.workspace, context.cluster)
    choice = plans.Choice(
        options.get("seeds", ()), options.get("steps", ()), options.get("tasks"), train_flags(options)
    )
    refuse(context, stages, choice.seeds, bool(options.get("allow_drift")))
    corpus = fetch_here(context) if "preprocess" in stages and not dry_run else None
    planned = plans.make_plans(context, stages, choice, corpus)
    if dry_run:
        click.echo(text_of(context, planned))
        return
    try:
        jobs = submit(context, planned)
    except PartlySubmitted as error:
        tell(context, error.jobs, as_json=options["as_json"])
        raise
    if not (options["as_json"] and context.wait):  # of JSON there is one text only, at the end
        tell(context, jobs, as_json=options["as_json"])
    if context.wait:
        from slurm.follow import follow
        from slurm.missing import refuse_missing

        if jobs:
            follow(context.workspace, context.experiment.name, context.progress)
        tell_results(context, stages, choice.seeds, options["as_json"])
        refuse_missing(context, stages, choice)


def tell_results(context: "Context", stages: Sequence[str], seeds: Sequence[str], as_json: bool) -> None:
    """Print the final table, where something was trained."""
    from pipeline.results import as_table, results

    if "train" in stages:
        rows = results(context, context.experiment.choose_seeds(seeds))
        click.echo(json.dumps(rows, indent=2) if as_json else as_table(rows))


def fetch_here(context: "Context") -> "Corpus | None":
    """Fetch what comes from a network where the command is typed, as nodes need none; the units, if any are missing."""
    from mistral.dataset import SEAL
    from pipeline.preprocess import fetch

    if any(context.manifest.find("preprocess", (name, SEAL)) is None for name in context.experiment.dataset_names()):
        fetched = fetch(context.experiment, context.workspace, context.progress)
        context.progress.say(fetched.as_text())
        return fetched.plan
    return None


def tell(context: "Context", jobs: Sequence["Job"], *, as_json: bool) -> None:
    """Print the jobs, and what to look at."""
    if as_json:
        rows = [
            {"stage": j.stage, "job": j.number, "jobs": j.numbers, "tasks": j.names, "found": j.found}
            | {"folder": str(j.submission.folder)}
            for j in jobs
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    for job in jobs:
        click.echo(job.line())
    hint = f"see: {context.experiment.command('status', context.workspace.root)}"
    click.echo(hint if jobs else f"{context.experiment.name}: nothing to do")


# --- commands ---------------------------------------------------------------------------------------------------


@click.command(cls=Command, epilog="Example:\n  mistral-pipeline logs gpt2-small --seed alias --follow")
@click.argument("experiment")
@workspace_option
@set_option
@click.option("--seed", metavar="NAME", help="Whose training; the first task unless given.")
@stage_option
@click.option("--rank", default=0, show_default=True, type=click.IntRange(min=0), help="Of which rank.")
@click.option("--follow", is_flag=True, help="Go on with what is written from now on, until Ctrl-C.")
@debug_option
def logs(
    *,
    experiment: str,
    workspace: Path,
    overrides: tuple[str, ...],
    seed: str | None,
    stage_name: str | None,
    rank: int,
    follow: bool,
) -> None:
    """The log of a task that was submitted to Slurm."""
    from mistral.config import load_experiment
    from mistral.workspace import Workspace
    from slurm.follow import lines_of, log_of

    loaded = load_experiment(experiment, overrides)
    run = loaded.run_name(loaded.choose_seeds([seed])[0]) if seed else None
    path = log_of(Workspace(workspace.absolute()), loaded.name, stage_name or "train", run, rank)
    click.echo(str(path), err=True)
    for line in lines_of(path, follow):
        click.echo(line)


@click.command(cls=Command, epilog="Example:\n  mistral-pipeline cancel gpt2-small --seed alias")
@click.argument("experiment")
@workspace_option
@set_option
@seed_option
@stage_option
@json_option
@debug_option
def cancel(
    *,
    experiment: str,
    workspace: Path,
    overrides: tuple[str, ...],
    seeds: tuple[str, ...],
    stage_name: str | None,
    as_json: bool,
) -> None:
    """End jobs of an experiment: those that run save their state and leave."""
    from mistral.config import load_experiment
    from mistral.workspace import Workspace
    from slurm import queue
    from slurm.follow import active

    loaded = load_experiment(experiment, overrides)
    found = active(Workspace(workspace.absolute()), loaded.name, "train" if seeds else stage_name)
    if found is None:
        raise EnvironmentProblem("found no answer from squeue, expected Slurm's list of jobs; nothing was cancelled")
    if seeds:  # also one that the experiment has no more, or that had other numbers when it was submitted
        runs = {seed: [t for t in found if t.name.startswith(f"{seed}-{loaded.name}-x")] for seed in seeds}
        loaded.choose_seeds([seed for seed in seeds if not runs[seed]])
        found = [task for task in found if any(task in tasks for tasks in runs.values())]
    labels = [task.job.label for task in found]
    jobs = labels if seeds else list(dict.fromkeys(label.partition("_")[0] for label in labels))  # whole arrays
    if jobs:
        queue.cancel(jobs)
    click.echo(
        json.dumps(labels) if as_json else f"cancelled {counted(len(labels), 'tasks')}: {', '.join(jobs)}".rstrip(": ")
    )


@click.command(cls=Command, epilog="Example:\n  mistral-pipeline again --workspace /scratch/owt --code 137")
@workspace_option
@click.option("--code", type=int, required=True, help="How the step of this job ended.")
@debug_option
def again(workspace: Path, code: int) -> None:
    """The end of a batch script: run the job again, or say why not."""
    from mistral.workspace import Workspace
    from slurm.attempt import again

    again(Workspace(workspace.absolute()), code)
