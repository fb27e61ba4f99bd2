"""the options of the command line, and what all stages have in common; cli.py puts them together."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:  # nothing heavy is imported before a command runs: --help answers in half a second
    from pipeline.context import Context

Function = TypeVar("Function", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose help ends with its example, line by line."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example as it stands, without wrapping."""
        if self.epilog:
            formatter.write("\n")
            formatter.write("\n".join(self.epilog.splitlines()) + "\n")


def _folder(_context: click.Context, _parameter: click.Parameter, path: Path) -> Path:
    """Refuse a workspace that is no folder, or below what is none, before anything looks into it."""
    there = next(part for part in (path.absolute(), *path.absolute().parents) if os.path.lexists(part))
    if not there.is_dir():
        raise click.BadParameter(
            f"found {there}, which is no folder, expected a folder, or the name of one that is made; name another path"
        )
    return path


workspace_option = click.option(
    "--workspace",
    callback=_folder,
    default="workspace",
    envvar="MISTRAL_WORKSPACE",
    show_default=True,
    show_envvar=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder on a shared file system where the stages meet.",
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one value of the experiment."
)
cluster_option = click.option(
    "--cluster", default="local", show_default=True, help="Name in conf/clusters, or a path: where to run."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
wait_option = click.option("--wait", is_flag=True, help="Follow until the end (on this machine that is always so).")
debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
seed_option = click.option("--seed", "seeds", multiple=True, metavar="NAME", help="Only this seed; may be repeated.")


def stage(function: Function) -> Callable[..., None]:
    """The arguments that every stage has, handed on as one Context; and `as_json`."""

    @functools.wraps(function)
    def call(
        experiment: str, workspace: Path, cluster: str, overrides: tuple[str, ...], *, wait: bool, **options: Any
    ) -> None:
        from mistral.config import find_config, set_options

        files = [find_config(experiment, "experiments"), find_config(cluster, "clusters")]
        experiment, cluster = [str(path.absolute()) for path in files]  # a task may start in another folder
        arguments = [function.__name__, experiment, "--workspace", str(workspace.absolute()), "--cluster", cluster]
        arguments += set_options(overrides)
        function(make_context(experiment, workspace, cluster, overrides, arguments, wait=wait), **options)

    decorated: Callable[..., None] = call
    for option in (debug_option, wait_option, json_option, set_option, cluster_option, workspace_option):
        decorated = option(decorated)
    return click.argument("experiment")(decorated)


def inspection(function: Function) -> Callable[..., None]:
    """The arguments of commands that look at an experiment or a whole workspace, handed on loaded; and `as_json`."""

    @functools.wraps(function)
    def call(experiment: str | None, workspace: Path, overrides: tuple[str, ...], **options: Any) -> None:
        from mistral.config import load_experiment
        from mistral.workspace import Workspace

        if overrides and experiment is None:
            raise click.UsageError("found --set without EXPERIMENT, expected one whose values it overrides; name it")
        loaded = None if experiment is None else load_experiment(experiment, overrides)
        function(loaded, Workspace(workspace.absolute()), **options)

    decorated: Callable[..., None] = call
    for option in (debug_option, json_option, set_option, workspace_option):
        decorated = option(decorated)
    return click.argument("experiment", required=False)(decorated)


def task_options(tasks: bool) -> Callable[[Function], Function]:
    """`--task N`, and `--tasks M` where the number of tasks is free."""

    def decorate(function: Function) -> Function:
        if tasks:
            text = "Cut the units into M tasks instead of the cluster file's number."
            function = click.option("--tasks", type=click.IntRange(min=1), metavar="M", help=text)(function)
        text = "Do only task N of the stage, here: what array jobs run."
        return click.option("--task", type=click.IntRange(min=0), metavar="N", help=text)(function)

    return decorate


def push_options(function: Function) -> Function:
    """`--push` and `--public`."""
    text = "Then publish them on the Hugging Face Hub, with the token in HF_TOKEN; needs a network."
    private = "Let everyone read what --push publishes; private unless given."
    function = click.option("--public", is_flag=True, help=private)(function)
    return click.option("--push", is_flag=True, help=text)(function)


def make_context(
    experiment: str,
    workspace: Path,
    cluster: str,
    overrides: tuple[str, ...],
    arguments: Sequence[str],
    *,
    wait: bool = False,
) -> "Context":
    """Load and check everything that a command works on."""
    from mistral.config import load_cluster, load_experiment
    from mistral.workspace import Workspace
    from pipeline.context import Context
    from pipeline.reporter import Reporter

    loaded, place = load_experiment(experiment, overrides), Workspace(workspace.absolute())
    place.refuse_other_links()
    return Context(loaded, load_cluster(cluster), place, Reporter(), tuple(arguments), wait)
