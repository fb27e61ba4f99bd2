"""The model card tells where a model comes from, in a form that the Hub reads."""

import re
from dataclasses import replace

import pytest
import yaml

from mistral.config import Data, load_experiment
from mistral.errors import ConfigError
from mistral.modelcard import CardFacts, model_card


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


def plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_licence_and_language_come_from_the_experiment_and_are_never_made_up(card):
    _, front, text = card("export.license=mit", "export.language=de").split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "mit"
    assert "Licence: mit. Language: de." in text


def test_a_card_without_a_licence_says_so(card):
    _, front, text = card().split("---\n", 2)
    assert {"license", "language"} & yaml.safe_load(front).keys() == set()
    assert "No licence is stated. No language is stated." in text


@pytest.mark.parametrize("setting", ["export.license=MIT or so", "export.language=english", "export.language=[en, 3]"])
def test_a_licence_or_language_that_the_hub_cannot_read_is_refused(tmp_path, trained, setting):
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        load_experiment(str(tmp_path / "tiny.yaml"), (setting,))


def test_it_says_which_transformers_compute_the_model_and_how_older_ones_do(card):
    """transformers 4.57 with sdpa gives another loss than 5.6 does, and with eager attention the same (measured)."""
    usage = section(card(), "How to load it")
    assert "transformers 5.6 or newer is needed for this code" in usage
    assert "transformers#44380" in usage
    eager = re.findall(r"```python\n(.*?)```", usage, flags=re.S)[1]
    assert eager == (
        'model = AutoModelForCausalLM.from_pretrained("exports/alias-tiny-x21/checkpoint-4", '
        'attn_implementation="eager")\n'
    )


def written(trained, **values) -> str:
    """The card of a checkpoint under an experiment of which some sections are others."""
    run = trained.train("alias")
    begun = trained.manifest.get("train", (run, "begin"), "")
    weights = trained.manifest.get("train", (run, "weights", "step-00000004"), "")
    experiment = trained.experiment.model_copy(update=values)
    return model_card(CardFacts(experiment, "alias", begun, weights, trained.dataset, [], []))


def test_the_warning_of_older_versions_stands_only_where_it_matters(trained):
    plain_scale = trained.experiment.model.model_copy(update={"scale_attn_by_inverse_layer_idx": False})
    assert "5.6 or newer" not in written(trained, model=plain_scale)


@pytest.mark.parametrize(
    ("tokenizer", "told"),
    [
        (
            {"train": {"vocab_size": 8192}},
            "byte-level BPE of 8,192 tokens, trained on up to 1,000 MB of the training docu",
        ),
        (
            {"passthrough": {"vocab_size": 50257, "end_of_text_id": 9}},
            "none: the corpus is token ids below 50,257, and 9 ",
        ),
        ("gpt2", "`gpt2`"),
    ],
)
def test_prose_holds_nothing_of_python(trained, tokenizer, told):
    data = Data.model_validate(trained.experiment.data.model_dump() | {"tokenizer": tokenizer})
    text = written(trained, data=data)
    assert rows(text, "Data")["tokenizer"].startswith(told)
    assert re.findall(r"\b(True|False|None|\w+\(\w+=)", re.sub(r"```.*?```", "", text, flags=re.S)) == []


def test_the_hub_reads_its_front_matter(card):
    _, front, text = card("export.license=cc-by-4.0", "export.language=[en, no]").split("---\n", 2)
    assert yaml.safe_load(front) == {
        "language": ["en", "no"],
        "license": "cc-by-4.0",
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
    training |= {"seq_len": 16, "lr_decay_steps": 4}
    assert rows(text, "Architecture") == {name: plain(value) for name, value in model.items()}
    assert rows(text, "Hyperparameters") == {name: plain(value) for name, value in training.items()}
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
