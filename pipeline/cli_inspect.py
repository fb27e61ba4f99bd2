"""command line -> what a workspace holds, shown, checked and mended: status, verify, restore, clean."""

import json
import time
from typing import TYPE_CHECKING

import click

from mistral.errors import Findings
from mistral.numbers import counted
from pipeline.options import Command, inspection, seed_option

if TYPE_CHECKING:  # nothing heavy is imported before a command runs: --help answers in half a second
    from mistral.config import Experiment
    from mistral.workspace import Workspace
    from pipeline.status import StatusReport

WATCH_SECONDS = 10


@click.command(cls=Command, epilog="Example:\n  mistral-pipeline status quickstart --watch")
@inspection
@click.option("--watch", is_flag=True, help="Show it again every 10 seconds, until Ctrl-C.")
def status(experiment: "Experiment | None", workspace: "Workspace", *, as_json: bool, watch: bool) -> None:
    """How far each run is; without EXPERIMENT, all runs of the workspace."""
    while True:
        report = take_status(experiment, workspace)
        click.echo(json.dumps(report.to_json(), indent=2) if as_json else report.as_table())
        if not watch:
            return
        time.sleep(WATCH_SECONDS)
        click.clear()


def take_status(experiment: "Experiment | None", workspace: "Workspace") -> "StatusReport":
    """How far the runs are, and their jobs where any were submitted; Slurm is asked once, its accounting if it must."""
    from pipeline.status import run_names, status

    if not (workspace.root / "jobs").is_dir():
        return status(experiment, workspace)
    from slurm.history import look

    name, runs = experiment.name if experiment else None, run_names(experiment, workspace)
    return status(experiment, workspace, look(workspace, name, runs))


@click.command(cls=Command, epilog="Example:\n  mistral-pipeline verify quickstart --quick")
@inspection
@click.option("--quick", is_flag=True, help="Compare sizes only; without it every byte is hashed.")
@click.option("--remote", is_flag=True, help="Also compare what is published on the Hugging Face Hub, file by file.")
def verify(
    experiment: "Experiment | None", workspace: "Workspace", *, as_json: bool, quick: bool, remote: bool
) -> None:
    """Check every file against its record, and every record against those it was made from."""
    from pipeline.reporter import Reporter
    from pipeline.verify import verify

    report = verify(workspace, Reporter(), experiment, quick, remote)
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else report.as_text())
    if report.problems:
        raise Findings(f"found {counted(len(report.problems), 'problems')}, expected none; {report.advice()}")


@click.command(cls=Command, epilog="Example:\n  mistral-pipeline restore gpt2-small --workspace /scratch/owt")
@inspection
@seed_option
def restore(experiment: "Experiment | None", workspace: "Workspace", *, as_json: bool, seeds: tuple[str, ...]) -> None:
    """Record checkpoints again whose record is gone, where later records prove their files."""
    from pipeline.restore import refuse_unproven, restore

    if experiment is None:
        raise click.UsageError("found no EXPERIMENT, expected the one whose checkpoints are to be recorded; name it")
    summary = restore(experiment, workspace, seeds)
    click.echo(json.dumps(summary.to_json(), indent=2) if as_json else summary.as_text())
    refuse_unproven(summary)


@click.command(cls=Command, epilog="Example:\n  mistral-pipeline clean gpt2-small --workspace /scratch/owt --dry-run")
@inspection
@click.option("--dry-run", is_flag=True, help="List what would be removed, and remove nothing.")
def clean(experiment: "Experiment | None", workspace: "Workspace", *, as_json: bool, dry_run: bool) -> None:
    """Remove what was set aside for good; without EXPERIMENT, of all runs of the workspace."""
    from pipeline.clean import clean

    summary = clean(experiment, workspace, dry_run=dry_run)
    click.echo(json.dumps(summary.to_json(), indent=2) if as_json else summary.as_text())
