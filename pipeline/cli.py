"""command line -> one call of a command: the only file that parses arguments, prints results and sets exit codes."""

import contextlib
import gc
import json
import os
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import click

from mistral import __version__
from mistral.errors import Findings, MistralError, Stopped
from mistral.numbers import counted
from pipeline import cli_inspect, cli_slurm
from pipeline.cli_slurm import submits
from pipeline.local import EndsAtOnce, die_with_parent, ignore_signals, listen, stop_on_sigterm
from pipeline.options import Command, debug_option, push_options, seed_option, stage, task_options

if TYPE_CHECKING:  # nothing heavy is imported before a command runs: --help answers in half a second
    from pipeline.context import Context


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, package_name="mistral-pipeline")
@debug_option
def cli() -> None:
    """Train the same GPT-2 with several seeds, and publish every checkpoint.

    Three stages that meet in a workspace: preprocess, train, export. Each may be run again at any time: it finds what
    is recorded and does what is missing.

    \b
    Example:
      mistral-pipeline run quickstart
    """


@cli.command(cls=Command, epilog="Example:\n  mistral-pipeline run quickstart --workspace /scratch/me/quickstart")
@stage
@seed_option
@click.option("--sample/--no-sample", default=True, help="End with a sample of generated text.")
@submits("preprocess", "train", "export")
def run(context: "Context", *, as_json: bool, seeds: tuple[str, ...], sample: bool) -> None:
    """All three stages: preprocess, train, export."""
    from dataclasses import replace

    from pipeline.refusals import refuse
    from pipeline.train import train

    chosen = context.experiment.choose_seeds(seeds)
    refuse(context, ("preprocess", "train", "export"), seeds)
    do_preprocess(context, None, None)
    failures: list[Findings] = []
    exported: tuple[str, ...] = ()
    with held(failures):  # a failed seed does not stop the export of the others
        train(replace(context, task_arguments=("train", *context.task_arguments[1:])), seeds)
    with held(failures):
        exported = do_export(context, seeds, (), None, None).exported
    show_results(context, chosen, as_json, failures)
    if exported and sample and not as_json and context.experiment.data.passthrough() is None:
        show_sample(context, chosen[0], None, "KING.", 60)


@cli.command(
    cls=Command,
    epilog="Example:\n  mistral-pipeline preprocess gpt2-small --workspace /scratch/owt\n"
    "  mistral-pipeline preprocess quickstart --peek 5",
)
@stage
@task_options(tasks=True)
@click.option(
    "--peek", type=click.IntRange(min=1), metavar="N", help="Print the first N documents as the model sees them."
)
@click.option("--fetch-only", is_flag=True, help="Fetch what comes from a network into the workspace, and stop.")
@submits("preprocess")
def preprocess(
    context: "Context", *, as_json: bool, task: int | None, tasks: int | None, peek: int | None, fetch_only: bool
) -> None:
    """Tokenize the corpus and pack it into HDF5 shards."""
    if peek is not None:
        if as_json or fetch_only:
            raise click.UsageError("--peek prints documents as text and does nothing else; leave the other option out")
        from mistral.peek import first_documents

        for shown in first_documents(context.experiment, context.workspace, peek):
            click.echo(shown)
    elif fetch_only:
        from pipeline.preprocess import fetch

        show(fetch(context.experiment, context.workspace, context.progress), as_json)
    else:
        show(do_preprocess(context, task, tasks), as_json)


def do_preprocess(context: "Context", task: int | None, tasks: int | None) -> Any:
    """The stage, or one task of it."""
    from pipeline.preprocess import preprocess

    resources = context.cluster.stages.preprocess
    return preprocess(
        context.experiment, context.workspace, context.progress,
        tasks=tasks or resources.tasks, task=task, workers=resources.cpus_per_task,
    )  # fmt: skip


@cli.command(cls=Command, epilog="Example:\n  mistral-pipeline train gpt2-small --seed alias --workspace /scratch/owt")
@stage
@seed_option
@task_options(tasks=False)
@click.option("--allow-drift", is_flag=True, help="Train a seed that differs from its siblings, and record how.")
@click.option("--steal-lease", is_flag=True, help="Take a run over from a process that cannot be asked.")
@click.option(
    "--from-earlier-state", is_flag=True, help="Go back to an earlier state where weights before the newest are lost."
)
@click.option("--from-step-0", is_flag=True, help="Begin again at step 0 where no state of a run can be used.")
@submits("train")
def train(context: "Context", *, as_json: bool, seeds: tuple[str, ...], task: int | None, **flags: bool) -> None:
    """Train the seeds, one run each.

    Goes on from the last state of a run that was stopped or killed.
    """
    from dataclasses import replace

    from pipeline import train as command

    context = replace(context, task_arguments=(*context.task_arguments, *cli_slurm.train_flags(flags)))
    if task is not None:
        command.train_task(context, task, cli_slurm.train_options(flags), seeds)
        return
    failures: list[Findings] = []
    with held(failures):
        command.train(context, seeds, flags["allow_drift"])
    show_results(context, context.experiment.choose_seeds(seeds), as_json, failures)


@cli.command(cls=Command, epilog="Example:\n  mistral-pipeline export gpt2-small --seed alias --step 1000 --push")
@stage
@seed_option
@click.option("--step", "steps", type=click.IntRange(min=0), multiple=True, metavar="N", help="Only this step.")
@click.option("--all-steps", is_flag=True, help="Every recorded step (the default without --step).")
@task_options(tasks=True)
@push_options
@submits("export")
def export(
    context: "Context", *, as_json: bool, seeds: tuple[str, ...], steps: tuple[int, ...], all_steps: bool,
    task: int | None, tasks: int | None, push: bool, public: bool,
) -> None:  # fmt: skip
    """Turn recorded checkpoints into Hugging Face model folders, and publish them."""
    if (push and task is not None) or (public and not push):
        raise click.UsageError("--push goes without --task, as one process is paced, and --public with --push only")
    if push:
        from pipeline.push import export_and_push

        show(export_and_push(context, seeds, steps, public), as_json)
    else:
        show(do_export(context, seeds, steps, task, tasks), as_json)


def do_export(
    context: "Context", seeds: tuple[str, ...], steps: tuple[int, ...], task: int | None, tasks: int | None
) -> Any:
    """The stage, or one task of it."""
    from pipeline.export import export

    return export(
        context.experiment, context.workspace, context.progress,
        seeds=seeds, steps=steps, tasks=tasks or context.cluster.stages.export.tasks, task=task,
    )  # fmt: skip


for command in (cli_inspect.status, cli_inspect.verify, cli_inspect.restore, cli_inspect.clean):
    cli.add_command(command)


@cli.command(cls=Command, epilog="Example:\n  mistral-pipeline evaluate gpt2-small --seed alias --step 1000")
@stage
@seed_option
@click.option("--step", "steps", type=click.IntRange(min=0), multiple=True, metavar="N", help="Only this step.")
def evaluate(context: "Context", *, as_json: bool, seeds: tuple[str, ...], steps: tuple[int, ...]) -> None:
    """Loss, perplexity and accuracy of recorded checkpoints, on the validation split and the evaluation sets."""
    from pipeline.evaluate import evaluate

    summary = evaluate(context, context.experiment.choose_seeds(seeds), steps)
    show(summary, as_json)
    if summary.refused:
        raise Findings(
            f"found {counted(len(summary.refused), 'checkpoints')} that cannot be measured:\n"
            + "\n".join(summary.refused)
        )


@cli.command(cls=Command, epilog='Example:\n  mistral-pipeline generate quickstart --seed alias --prompt "KING."')
@stage
@click.option("--seed", required=True, metavar="NAME", help="Whose model.")
@click.option("--step", type=click.IntRange(min=0), metavar="N", help="Which exported step; the last unless given.")
@click.option("--prompt", required=True, metavar="TEXT", help="What the text begins with.")
@click.option("--tokens", default=100, show_default=True, type=click.IntRange(min=1), help="Tokens to add at most.")
def generate(context: "Context", *, as_json: bool, seed: str, step: int | None, prompt: str, tokens: int) -> None:
    """Continue a prompt with an exported model."""
    [chosen] = context.experiment.choose_seeds([seed])
    show_sample(context, chosen, step, prompt, tokens, as_json=as_json)


for command in (cli_slurm.logs, cli_slurm.cancel, cli_slurm.again):
    cli.add_command(command)


# --- printing ---------------------------------------------------------------------------------------------------


def show(result: Any, as_json: bool) -> None:
    """Print what a stage returned."""
    click.echo(json.dumps(result.to_json(), indent=2) if as_json else result.as_text())


@contextlib.contextmanager
def held(failures: list[Findings]) -> Iterator[None]:
    """Keep the findings of a piece of work until the results are shown."""
    try:
        yield
    except Findings as error:
        failures.append(error)


def show_results(context: "Context", seeds: list[str], as_json: bool, failures: list[Findings]) -> None:
    """Print the final table, then raise the failures that were held.

    Raises:
        Findings: tells all of them.
    """
    from pipeline.results import as_table, results

    rows = results(context, seeds)
    click.echo(json.dumps(rows, indent=2) if as_json else as_table(rows))
    if failures:
        raise Findings("\n".join(map(str, failures)))


def show_sample(
    context: "Context", seed: str, step: int | None, prompt: str, tokens: int, *, as_json: bool = False
) -> None:
    """Print generated text."""
    from pipeline.generate import generate, newest_export

    folder = newest_export(context, seed, step)
    text = generate(folder, prompt, tokens, temperature=0.8, seed=context.experiment.seeds[seed].init)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "text": text}, indent=2))
    else:
        click.echo(f"\nA sample of {folder.parent.name}, {folder.name}:\n\n{text}")


def fail(error: BaseException, code: int, debug: bool, advice: str = "") -> NoReturn:
    """Print an error for the user and exit."""
    ignore_signals()
    if debug:
        traceback.print_exception(error)
    name = "" if isinstance(error, Stopped) else f"{type(error).__name__}: "  # whose message says so itself
    if told := f"{error}":  # a rank that was told to stop, or its parent, leaves the word to rank 0
        click.echo(f"{name}{told}{advice}", err=True)
    sys.exit(code)


@EndsAtOnce()
def main() -> NoReturn:
    """Entry point: maps outcomes to exit codes."""
    gc.set_threshold(50_000, 20, 100)  # the classes of a hundred modules are no garbage: start in a tenth less time
    die_with_parent()
    debug = "--debug" in sys.argv
    try:
        stop_on_sigterm()
        listen()
        code = cli(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MistralError as error:
        fail(error, error.exit_code, debug)
    except (KeyboardInterrupt, click.Abort):
        fail(Stopped("stopped by Ctrl-C\n  run the same command to go on"), Stopped.exit_code, debug)
    except BrokenPipeError:  # who read the output has left, as `head` does; nothing may be flushed into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(MistralError.exit_code)
    except OSError as error:
        advice = "\n  check the path, its permissions and the file system; --debug shows where it happened"
        fail(error, MistralError.exit_code, debug, advice)
    sys.exit(code if isinstance(code, int) else os.EX_OK)


if __name__ == "__main__":
    main()
