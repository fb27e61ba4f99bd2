"""What a command refuses it refuses before any work: hours of preprocessing are not thrown away."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mistral.cohort import begin, begin_facts, refuse_other_configs
from mistral.config import load_cluster, load_experiment
from mistral.errors import ConfigError, DataError, EnvironmentProblem, ManifestError, MistralError
from mistral.manifest import Manifest, make_record
from mistral.progress import Silent
from mistral.workspace import Workspace
from pipeline import cli
from pipeline.context import Context
from pipeline.preprocess import preprocess
from pipeline.refusals import refuse

CLUSTERS = {
    "ranks3": "{name: test, executor: local, stages: {train: {ranks_per_node: 3, threads_per_rank: 1}}}",
    "threads2": "{name: test, executor: local, stages: {train: {threads_per_rank: 2}}}",
    "gpus": "{name: test, executor: local, stages: {train: {gpus_per_node: 1, threads_per_rank: 1}}}",
    "slurm": "{name: test, executor: slurm, stages: {train: {threads_per_rank: 1}}}",
}
CHANGES = [
    ("data.validation_fraction=0.3", "data.validation_fraction: was 0.2, is 0.3"),
    ("model.n_layer=1", "model.n_layer: was 2, is 1"),
    ("training.zero_stage=2", "training.zero_stage: was 1, is 2"),
]


@pytest.fixture
def begun(packed: Path, tmp_path: Path) -> Path:
    """A workspace in which the run of alias has begun on one thread, and has weights of step 0."""
    root = tmp_path / "workspace"
    shutil.copytree(packed / "workspace", root)
    for name, text in CLUSTERS.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    loaded, manifest = load_experiment(str(packed / "tiny.yaml")), Manifest(Workspace(root))
    seal = manifest.get("preprocess", (loaded.data.dataset_name(), "dataset"), "")
    facts = begin_facts(loaded, "alias", seal.content, {"world_size": 1, "threads": 1})
    run = loaded.run_name("alias")
    begin(manifest, run, facts, allow_drift=False)
    key = (run, "weights", "step-00000000")
    manifest.publish(make_record("train/weights", key, config="c", inputs={}, files=[], facts={}))
    return root


@pytest.fixture
def refused(packed: Path, begun: Path) -> Callable[..., str]:
    """Call a command that must refuse and leave the workspace as it is; gives what it says."""

    def refused(command: str, *arguments: str, by: type[MistralError] = ConfigError, cluster: str = "here") -> str:
        place = ["--cluster", str(begun.with_name(f"{cluster}.yaml"))] if cluster in CLUSTERS else []
        before = snapshot(begun)
        with pytest.raises(by) as caught:
            line = [command, str(packed / "tiny.yaml"), "--workspace", str(begun), *place, *arguments]
            cli.cli(line, standalone_mode=False)
        assert snapshot(begun) == before
        return str(caught.value)

    return refused


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(("change", "expected"), CHANGES)
def test_a_run_that_never_made_a_step_is_refused_by_no_command(packed, begun, change, expected):
    experiment = load_experiment(str(packed / "tiny.yaml"), (change,))
    manifest = Manifest(Workspace(begun))
    manifest.remove("train", (experiment.run_name("alias"), "weights", "step-00000000"))
    context = Context(experiment, load_cluster("local"), manifest.workspace, Silent())
    refuse(context, ("preprocess", "train", "export"), (), allow_drift=False)
    refuse_other_configs(manifest, experiment, experiment.seeds)


@pytest.mark.parametrize(("change", "expected"), CHANGES)
@pytest.mark.parametrize(
    ("command", "cluster"),
    [
        ("run", "here"),
        ("run", "slurm"),
        ("train", "here"),
        ("train", "slurm"),
        ("export", "here"),
        ("export", "slurm"),
        ("evaluate", "here"),
    ],
)
def test_a_config_that_a_run_did_not_begin_with_is_refused_before_any_work(refused, command, cluster, change, expected):
    assert expected in refused(command, "--set", change, cluster=cluster)


@pytest.mark.parametrize("command", ["run", "train"])
def test_a_schedule_that_drops_what_a_run_began_with_is_refused_before_any_work(refused, command):
    told = refused(command, "--set", "checkpoints.schedule=[[3, 12]]", "--set", "data.validation_fraction=0.2")
    assert "found one without the steps 2, 4, 8" in told


@pytest.mark.parametrize("command", ["run", "train"])
def test_what_would_make_a_seed_differ_from_its_siblings_is_refused_before_any_work(refused, command):
    seed = ("--seed", "battlestar")
    assert "differs from its siblings" in refused(command, *seed, cluster="threads2")
    assert "numerics.threads: was 1, is 2" in refused(command, *seed, cluster="threads2")
    told = refused(command, *seed, "--set", "data.validation_fraction=0.3")
    assert "config.data.validation_fraction: was 0.2, is 0.3" in told


@pytest.mark.parametrize("command", ["run", "train"])
def test_what_this_machine_cannot_do_is_refused_before_any_work(refused, command):
    assert "expected a multiple of" in refused(command, cluster="ranks3")
    assert "found no GPU" in refused(command, cluster="gpus", by=EnvironmentProblem)


def test_fp16_on_a_cpu_is_refused_before_any_work(packed, tmp_path):
    line = ["run", str(packed / "tiny.yaml"), "--workspace", str(tmp_path / "new"), "--set", "training.precision=fp16"]
    with pytest.raises(EnvironmentProblem, match="found fp16 on a CPU"):
        cli.cli(line, standalone_mode=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["run", "train", "export"])
@pytest.mark.parametrize("cluster", ["here", "slurm"])
def test_a_seed_that_does_not_exist_is_refused_before_any_work(refused, command, cluster):
    other_data = ("--set", "data.name=others")
    assert "caprica" in refused(command, "--seed", "caprica", *other_data, cluster=cluster)


def test_a_step_that_is_not_recorded_is_refused_before_any_work(refused):
    assert "found no weights" in refused("export", "--step", "3", by=ManifestError)


@pytest.mark.parametrize("command", ["run", "train", "export"])
def test_another_experiments_run_of_the_same_name_is_refused_before_any_work(refused, packed, begun, command):
    loaded = load_experiment(str(packed / "tiny.yaml"))
    facts = begin_facts(loaded, "battlestar", "d", {"threads": 1}) | {"experiment": "x", "seed": "battlestar-tiny"}
    manifest, run = Manifest(Workspace(begun)), loaded.run_name("battlestar")
    begin(manifest, run, facts, allow_drift=False)
    key = (run, "weights", "step-00000000")  # a run that made no step binds nobody
    manifest.publish(make_record("train/weights", key, config="c", inputs={}, files=[], facts={}))
    told = refused(command, "--set", "data.name=new", "--seed", "battlestar")
    assert "expected that of seed battlestar of experiment tiny" in told


@pytest.mark.parametrize("command", ["run", "preprocess"])
def test_an_evaluation_set_whose_source_is_not_there_is_refused_before_any_work(packed, tmp_path, command):
    setting = "evaluation.lambada.source.files=['nowhere/*.jsonl']"
    line = [command, str(packed / "tiny.yaml"), "--workspace", str(tmp_path / "new"), "--set", setting]
    with pytest.raises(DataError, match=r"evaluation\.lambada: .*found no file that matches nowhere"):
        cli.cli(line, standalone_mode=False)
    assert not (tmp_path / "new").exists()


def test_a_task_that_does_not_exist_is_refused_before_any_work(packed, tmp_path):
    with pytest.raises(ConfigError, match="--task: found 3, expected 0 to 1 for 2 tasks"):
        preprocess(load_experiment(str(packed / "tiny.yaml")), Workspace(tmp_path / "new"), Silent(), tasks=2, task=3)
    assert not (tmp_path / "new").exists()
