"""The evaluation section: its defaults are complete, its mistakes are told, and it changes no dataset or begun run."""

from pathlib import Path

import pytest

from mistral.config import load_experiment, to_yaml
from mistral.errors import ConfigError

ROOT = Path(__file__).parent.parent
SMALL = ROOT / "conf" / "experiments" / "gpt2-small.yaml"


@pytest.fixture
def load(tmp_path):
    def load(evaluation: str, *overrides: str):
        text = SMALL.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if not line.startswith("evaluation:")]
        (tmp_path / "gpt2-small.yaml").write_text("\n".join([*lines, evaluation]) + "\n", encoding="utf-8")
        return load_experiment(str(tmp_path / "gpt2-small.yaml"), overrides)

    return load


def test_empty_sets_are_the_published_ones_at_pinned_commits(load):
    sets = load("evaluation: {wikitext103: {}, lambada: {}}").evaluation_sets()
    wikitext, lambada = sets["wikitext103"].data, sets["lambada"].data
    assert (wikitext.source.hub, wikitext.source.config) == ("Salesforce/wikitext", "wikitext-103-raw-v1")
    assert (wikitext.detokenizer, lambada.detokenizer) == ("wikitext", "none")
    assert lambada.source.hub == "EleutherAI/lambada_openai"
    for data in (wikitext, lambada):
        assert data.source.split == "test"
        assert len(data.source.revision) == 40
        assert (data.text_field, data.tokenizer, data.validation_fraction) == ("text", "gpt2", 0)
        assert not data.has_validation()


def test_sets_change_neither_the_dataset_nor_what_is_frozen(load):
    without = load("evaluation: {every_steps: 10}")
    one = load("evaluation: {every_steps: 5, wikitext103: {}, lambada: {}, stride: 64}")
    assert one.data.dataset_name() == without.data.dataset_name()
    assert one.frozen_sections("alias") == without.frozen_sections("alias")
    assert one.dataset_names()[:1] == without.dataset_names()
    assert len(set(one.dataset_names())) == 3


def test_a_set_has_the_files_and_tokenizer_of_its_experiment(load, tmp_path):
    text = "evaluation: {lambada: {source: {files: [l.txt], document: line}, text_field: x}}"
    one = load(text, "data.tokenizer=folder").evaluation_sets()["lambada"]
    assert one.path("l.txt") == tmp_path / "l.txt"
    assert one.data.tokenizer == "folder"
    assert one.data.text_field == "x"
    assert one.data.source.document == "line"


@pytest.mark.parametrize(
    ("evaluation", "override", "stride"),
    [
        ("evaluation: {lambada: {}}", "training.seq_len=1024", 512),
        ("evaluation: {lambada: {}}", "training.seq_len=100", 100),
        ("evaluation: {stride: 100}", "training.seq_len=100", 100),
    ],
)
def test_the_stride_is_512_or_less(load, evaluation, override, stride):
    assert load(evaluation, override).stride == stride


@pytest.mark.parametrize(
    ("evaluation", "problem"),
    [
        ("{stride: 1025}", "evaluation.stride: found 1025, expected at most 1024"),
        ("{stride: 0}", "evaluation.stride: found 0, expected greater than 0"),
        ("{lambada: 3}", "evaluation.lambada: found 3, expected a mapping"),
        ("{lambda: {}}", "evaluation.lambda: found an unknown key, .*; did you mean lambada?"),
        ("{lambada: {source: {file: x}}}", "evaluation.lambada.source: found .*, expected a mapping with one of the"),
        ("{lambada: {source: {files: 3}}}", "evaluation.lambada.source.files: found 3, expected a list"),
        ("{wikitext103: {source: {hub: x, validation_split: y}}}", "evaluation.wikitext103: found a source with valid"),
    ],
)
def test_a_mistake_is_told_where_it_is(load, evaluation, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        load(f"evaluation: {evaluation}")
    assert "has a problem:" in str(caught.value)


def test_sequences_of_one_token_predict_nothing(load):
    with pytest.raises(ConfigError, match="found sequences of 1 token, expected 2 or more"):
        load("evaluation: {}", "training.seq_len=1")


def test_a_text_of_ones_own_is_measured_as_it_is(load):
    own = "{source: {files: [plain.txt]}"
    assert load(f"evaluation: {{wikitext103: {own}}}}}").evaluation.wikitext103.detokenizer == "none"
    assert (
        load(f"evaluation: {{wikitext103: {own}, detokenizer: wikitext}}}}").evaluation.wikitext103.detokenizer
        == "wikitext"
    )
    assert load("evaluation: {wikitext103: {}}").evaluation.wikitext103.detokenizer == "wikitext"
    assert load("evaluation: {wikitext103: {detokenizer: none}}").evaluation.wikitext103.detokenizer == "none"


def test_the_config_that_is_kept_means_the_same(load, tmp_path):
    one = load("evaluation: {wikitext103: {}, lambada: {source: {files: [a.jsonl]}}, stride: 64}")
    (tmp_path / "kept.yaml").write_text(to_yaml(one), encoding="utf-8")
    kept = load_experiment(str(tmp_path / "kept.yaml"))
    assert kept.evaluation == one.evaluation
    assert kept.dataset_names() == one.dataset_names()
