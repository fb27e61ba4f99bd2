"""The options of the command line become one Context: names or paths, overrides, workspace, cluster."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mistral.config import to_yaml
from mistral.errors import ConfigError
from mistral.workspace import Workspace
from pipeline import options
from pipeline.context import Context


@pytest.fixture
def parse(monkeypatch):
    """What a command receives for a command line."""
    monkeypatch.delenv("MISTRAL_WORKSPACE", raising=False)
    received = []

    def example(*arguments: object, **rest: object) -> None:
        received.append((*arguments, rest))

    def parse(line: str, decorate=options.stage, **environment: str):
        command = click.command(decorate(example))
        result = CliRunner(env=environment).invoke(command, line.split(), standalone_mode=False)
        if result.exception:
            raise result.exception
        return received.pop()

    return parse


def test_an_experiment_is_a_bare_name_or_a_path(parse, tiny, monkeypatch):
    context, rest = parse("quickstart")
    assert (context.experiment.name, context.cluster.name, rest) == ("quickstart", "local", {"as_json": False})
    monkeypatch.chdir(tiny)
    for name in ("tiny.yaml", "./tiny.yaml", str(tiny / "tiny.yaml")):
        context, _ = parse(name)
        assert context.experiment.name == "tiny"
        assert context.experiment.path("corpus") == tiny / "corpus"
    with pytest.raises(ConfigError, match="experiment tiny: found no such name"):
        parse("tiny")
    (tiny / "conf" / "experiments").mkdir(parents=True)
    (tiny / "tiny.yaml").rename(tiny / "conf" / "experiments" / "tiny.yaml")
    assert parse("tiny")[0].experiment.path("corpus") == tiny / "conf" / "experiments" / "corpus"


def test_a_cluster_is_a_bare_name_or_a_path(parse, tiny):
    assert parse("quickstart --cluster slurm-a100")[0].cluster.executor == "slurm"
    cluster = parse(f"quickstart --cluster {tiny}/ranks2.yaml")[0].cluster
    assert (cluster.name, cluster.stages.train.ranks_per_node) == ("test", 2)
    with pytest.raises(
        ConfigError, match=r"cluster ranks2: found no such name .* expected one of local, local-two-ranks, slurm-a100"
    ):
        parse("quickstart --cluster ranks2")


def test_the_workspace_is_given_or_in_the_environment_or_here(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse("quickstart")[0].workspace == Workspace(tmp_path / "workspace")
    assert parse("quickstart", MISTRAL_WORKSPACE="/scratch/me")[0].workspace == Workspace(Path("/scratch/me"))
    line = "quickstart --workspace mine"
    assert parse(line, MISTRAL_WORKSPACE="/scratch/me")[0].workspace == Workspace(tmp_path / "mine")
    (tmp_path / "file").touch()
    with pytest.raises(click.BadParameter, match="is a file"):
        parse("quickstart --workspace file")


def test_values_are_set_in_their_order_and_checked(parse):
    context, _ = parse("quickstart --set training.max_steps=7 --set training.warmup_steps=0 --set training.max_steps=9")
    assert (context.experiment.training.max_steps, context.experiment.training.warmup_steps) == (9, 0)
    with pytest.raises(ConfigError, match="did you mean max_steps"):
        parse("quickstart --set training.maxsteps=7")


@pytest.mark.parametrize("names", ["tiny.yaml --cluster ranks2.yaml", "quickstart --cluster local"])
def test_a_task_gets_the_same_context_wherever_it_starts(parse, tiny, monkeypatch, names):
    conf = tiny / "conf" / "experiments"
    conf.mkdir(parents=True)
    (conf / "quickstart.yaml").write_text((tiny / "tiny.yaml").read_text())
    monkeypatch.chdir(tiny)
    first: Context = parse(f"{names} --set training.max_steps=7 --set seeds.new=5 --workspace w")[0]
    name, *arguments = first.task_arguments
    assert name == "example"
    monkeypatch.chdir("/")
    again = parse(" ".join(arguments))[0]
    assert (again.experiment, again.cluster, again.workspace) == (first.experiment, first.cluster, first.workspace)
    assert again.experiment.path("corpus") == first.experiment.path("corpus")
    assert (again.experiment.name, again.experiment.seeds["new"].init) == ("tiny", 5)
    assert again.task_arguments == first.task_arguments


def test_an_advised_command_names_the_experiment_as_short_as_it_can(parse, tiny, monkeypatch):
    monkeypatch.chdir(tiny)
    advised = [parse(line)[0].experiment.command("train", Path("/w")) for line in ("quickstart", "tiny.yaml")]
    assert advised == [f"mistral-pipeline train {name} --workspace /w" for name in ("quickstart", tiny / "tiny.yaml")]
    experiment = parse("quickstart --set training.max_steps=7 --set data.name=x")[0].experiment
    sets = "--set training.max_steps=7 --set data.name=x"
    assert experiment.command("export", Path("/a b"), "--push") == (
        f"mistral-pipeline export quickstart {sets} --push --workspace '/a b'"
    )


def test_the_config_that_a_run_keeps_is_an_experiment(parse, tiny):
    context, _ = parse(f"{tiny}/tiny.yaml --set training.max_steps=7")
    kept = tiny / "workspace" / "runs" / "alias-tiny-x21" / "config.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text(to_yaml(context.experiment))
    again, _ = parse(str(kept))
    assert again.experiment.path("corpus") == tiny / "corpus"
    assert again.experiment.frozen_sections("alias") == context.experiment.frozen_sections("alias")
    assert again.experiment.data.dataset_name() == context.experiment.data.dataset_name()


def test_looking_at_a_workspace_needs_no_experiment(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse("", options.inspection) == (None, Workspace(tmp_path / "workspace"), {"as_json": False})
    experiment, _, rest = parse("quickstart --json --set training.max_steps=7", options.inspection)
    assert (experiment.training.max_steps, rest) == (7, {"as_json": True})
    with pytest.raises(click.UsageError, match="found --set without EXPERIMENT"):
        parse("--set training.max_steps=7", options.inspection)


@pytest.mark.parametrize("line", ["--task 0", "--tasks 3", "--task 2 --tasks 3"])
def test_tasks_are_numbered_from_0_of_at_least_1(line):
    seen = {}
    command = click.command(options.task_options(tasks=True)(lambda **values: seen.update(values)))
    command.main(line.split(), standalone_mode=False)
    words = line.split()
    assert {f"--{name}": str(value) for name, value in seen.items() if value is not None} == dict(
        zip(words[::2], words[1::2], strict=True)
    )
    for wrong in ("--task -1", "--tasks 0"):
        with pytest.raises(click.BadParameter, match="is not in the range"):
            command.main(wrong.split(), standalone_mode=False)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/null/deeper", "{}/dangling", "{}/dangling/deeper"])
def test_a_workspace_that_is_no_folder_is_refused_by_its_path_before_anything_looks_into_it(parse, tmp_path, path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    named = path.format(tmp_path)
    for decorate in (options.stage, options.inspection):
        with pytest.raises(
            click.BadParameter, match=rf"found {named.removesuffix('/deeper')}, which is no folder, expected"
        ):
            parse(f"quickstart --workspace {named}", decorate)
    (tmp_path / "linked").symlink_to(tmp_path)
    for fresh in ("new/deeper", "linked", "linked/new"):
        parse(f"quickstart --workspace {tmp_path / fresh}")
