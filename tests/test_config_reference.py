"""Each key of a config is documented from the code, and the first experiment of the page runs as it stands."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

from mistral.config import load_cluster, load_experiment
from mistral.files import digest_of
from mistral.manifest import Manifest
from mistral.progress import Silent
from mistral.workspace import Workspace

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
REFERENCE = runpy.run_path(str(ROOT / "docs" / "config_reference.py"))


def rows() -> dict[str, list[str]]:
    """`TrainStage.minutes`: the cells of each key, by the tables of the page."""
    found = {}
    for heading, text in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S):
        for line in re.findall(r"^\| (`.*) \|$", text, flags=re.M):
            key, *cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
            found[f"{heading}.{key.strip('`')}"] = cells
    return found


def test_the_page_of_the_config_is_what_the_code_says():
    assert REFERENCE["reference"]() == PAGE, "found an old docs/config.md, expected what the code says; run: make docs"
    assert "docs/config.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_key_of_every_section_has_a_type_a_default_and_a_meaning():
    keys = [key for model in REFERENCE["MODELS"].values() for key in model.model_fields]
    assert len(rows()) >= len(set(keys)) > 80
    assert set(keys) == {name.rpartition(".")[2] for name in rows()}
    for name, (kind, _, default, meaning) in rows().items():
        assert kind and default and meaning.endswith("."), name


def test_every_number_has_a_unit():
    numbers = {name: unit for name, (kind, unit, *_) in rows().items() if kind.startswith(("whole number", "number"))}
    assert len(numbers) > 40
    assert [name for name, unit in numbers.items() if not unit] == []
    assert numbers["training.max_steps"] == "optimizer steps"
    assert numbers["stages.train.minutes"] == "minutes"


@pytest.mark.parametrize(
    ("name", "digest", "dataset"),
    [
        ("quickstart", "057f8299967eaa5a", "shakespeare-b84f9f64"),
        ("gpt2-micro", "4a28a9e629fdff26", "wikitext103-b59b25c9"),
        ("gpt2-small", "e9b2ab69bd4f11ae", "openwebtext-7f631401"),
        ("gpt2-medium", "596b988740304827", "openwebtext-7f631401"),
    ],
)
def test_the_experiments_keep_their_digests(name, digest, dataset):
    """A key that is given hashes as it always did, and so does one that is left out."""
    experiment = load_experiment(name)
    assert digest_of(experiment.frozen_sections(next(iter(experiment.seeds))))[:16] == digest
    assert experiment.data.dataset_name() == dataset


def test_the_cluster_file_of_the_page_is_that_of_the_repository():
    assert yaml.safe_load(EXAMPLES[1]) == yaml.safe_load((ROOT / "conf/clusters/local-two-ranks.yaml").read_text())
    assert load_cluster("local-two-ranks").stages.train.world_size() == 2


def test_the_first_experiment_of_the_page_is_preprocessed_trained_and_exported(tmp_path, plays, device):
    from mistral import training
    from mistral.ranks import Ranks
    from mistral.run import Run
    from mistral.training import Hooks
    from pipeline.export import export
    from pipeline.preprocess import preprocess
    from pipeline.train import TrainOptions, owned

    assert len(EXAMPLES[0].splitlines()) <= 10
    (tmp_path / "first.yaml").write_text(EXAMPLES[0])
    (tmp_path / "text").mkdir()
    for number, text in enumerate(plays):
        (tmp_path / "text" / f"{number}.txt").write_text(text, encoding="utf-8")
    experiment = load_experiment(str(tmp_path / "first.yaml"), ("training.max_steps=2",))
    manifest = Manifest(Workspace(tmp_path / "workspace"))
    preprocess(experiment, manifest.workspace, Silent())
    dataset = manifest.get("preprocess", (experiment.data.dataset_name(), "dataset"), "")
    run = Run(experiment, "one", manifest, dataset, Ranks(), 1, device)
    with owned(run, TrainOptions()) as ownership:
        training.train(run, ownership, Hooks(lambda: False, Silent()))
    summary = export(experiment, manifest.workspace, Silent(), seeds=["one"])
    assert summary.exported == ("one-first-x1/checkpoint-0", "one-first-x1/checkpoint-2")
