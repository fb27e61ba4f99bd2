"""The model card tells where a model comes from, in a form that the Hub reads."""

from dataclasses import replace

import pytest
import yaml

from mistral.config import load_experiment


@pytest.fixture
def card(trained, tmp_path):
    """The card of the last checkpoint, under an experiment with some values changed."""

    def card(*overrides: str) -> str:
        experiment = load_experiment(str(tmp_path / "tiny.yaml"), overrides)
        run = trained.train("alias")
        replace(trained, experiment=experiment).export(seeds=["alias"], steps=[4])
        return (trained.workspace.export(run, 4) / "README.md").read_text(encoding="utf-8")

    return card


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n\n")[2].partition("\n## ")[0]


def rows(text: str, title: str) -> dict[str, str]:
    lines = [line for line in section(text, title).splitlines() if line.startswith("| ") and line != "| | |"]
    return dict([cell.strip() for cell in line.strip("|").split("|")] for line in lines)


def test_the_hub_reads_its_front_matter(card):
    _, front, text = card().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "language": "en",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gpt2", "reproducibility", "training-dynamics"],
    }
    assert text.startswith("\n# alias-tiny-x21, checkpoint 4\n")


def test_it_tells_config_data_and_lineage(card, trained):
    text = card()
    weights = trained.manifest.get("train", ("alias-tiny-x21", "weights", "step-00000004"), "")
    assert "after 4 of 4 steps and 256 tokens" in text
    assert rows(text, "Seeds") == {"init": "21", "data": "21", "dropout": "21"}
    model, training = trained.experiment.model.model_dump(), trained.experiment.training.model_dump()
    assert rows(text, "Architecture") == {name: str(value) for name, value in model.items()}
    assert rows(text, "Hyperparameters") == {name: str(value) for name, value in training.items()}
    data = rows(text, "Data")
    assert data["dataset"] == trained.dataset.key[0]
    assert data["train"] == "3 documents, 1,024 tokens"
    assert data["validation split"].endswith("below 0.2")
    lineage = rows(text, "Lineage")
    assert (lineage["dataset"], lineage["weights"]) == (trained.dataset.content, weights.content)
    assert lineage["parent checkpoint"] == weights.inputs["parent"]


def test_it_tells_what_was_measured_up_to_its_step(card, trained):
    measured = rows(card(), "Measured")
    assert measured["training loss at step 4"] == "5.6"
    assert measured["validation loss at step 4"] == "5.5"
    trained.export(seeds=["alias"], steps=[2])
    path = trained.workspace.export("alias-tiny-x21", 2) / "README.md"
    earlier = rows(path.read_text(encoding="utf-8"), "Measured")
    assert earlier["training loss at step 2"] == "5.8"
    assert not any("step 4" in name for name in earlier)


def code(text: str) -> dict[str, object]:
    """Run the usage example with a stand-in for transformers, and hand back what it asks for."""
    asked: dict[str, object] = {}
    example = section(text, "How to load it").removeprefix("```python\n").partition("```")[0]
    imports, _, rest = example.partition("\n\n")
    assert imports == "from transformers import AutoModelForCausalLM, AutoTokenizer"

    def stand_in(kind: str):
        return type(kind, (), {"from_pretrained": lambda *place, **options: asked.update({kind: (*place, options)})})

    exec(rest, {name: stand_in(name) for name in ("AutoModelForCausalLM", "AutoTokenizer")})
    return asked


def test_its_example_loads_the_folder_of_the_workspace(card):
    local = ("exports/alias-tiny-x21/checkpoint-4", {})
    assert code(card()) == {"AutoModelForCausalLM": local, "AutoTokenizer": local}


def test_its_example_loads_the_published_revision(card):
    published = ("stanford-crfm/alias-tiny-x21", {"revision": "checkpoint-4"})
    assert code(card("export.organization=stanford-crfm")) == {
        "AutoModelForCausalLM": published,
        "AutoTokenizer": published,
    }
