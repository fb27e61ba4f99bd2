"""The promises of vocabulary.py, --peek and --fetch-only: tokenizers as files, documents as the model sees them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from corpora import experiment, hashes, run, texts, write_corpus
from transformers import AutoTokenizer, GPT2TokenizerFast

from mistral.errors import DataError
from mistral.files import sha256_of
from mistral.vocabulary import installed_gpt2, write_gpt2
from mistral.workspace import Workspace
from pipeline.cli import cli

TRAINED = {"train": {"vocab_size": 300}}


def test_gpt2_is_written_with_the_bytes_that_transformers_writes(tmp_path):
    encoder, merges = installed_gpt2()
    pairs = [tuple(line.split(" ")) for line in merges.read_text().splitlines()[1:] if line]
    theirs = GPT2TokenizerFast(vocab=json.loads(encoder.read_text()), merges=pairs, model_max_length=1024)
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    write_gpt2(tmp_path / "ours", encoder, merges)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert sha256_of(tmp_path / "ours" / name) == sha256_of(tmp_path / "theirs" / name)


def test_a_tokenizer_is_trained_to_the_same_bytes_each_time_and_loads_in_transformers(tmp_path, monkeypatch):
    write_corpus(tmp_path, texts())
    what = experiment(tmp_path, tokenizer=TRAINED)
    summary = run(tmp_path, what)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    run(tmp_path, what, "again", workers=3)
    assert hashes(tmp_path, "again") == hashes(tmp_path)
    assert summary.facts["vocabulary_size"] == 300
    loaded = AutoTokenizer.from_pretrained(Workspace(tmp_path / "workspace").tokenizer(summary.dataset))
    text = "the king says: naïve 日本"
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.eos_token_id == summary.facts["end_of_text_id"] == 0


def test_a_tokenizer_is_trained_on_no_more_text_than_is_asked_for_and_not_on_validation(tmp_path):
    """300 tokens cannot come of documents that are all validation, nor of one word."""
    write_corpus(tmp_path, texts()[:50])
    with pytest.raises(DataError, match=r"found text for 257 tokens, expected 300(.|\n)*lower vocab_size"):
        run(tmp_path, experiment(tmp_path, tokenizer=TRAINED, validation_fraction=1 - 1e-12))


def invoke(folder: Path, *options: str) -> str:
    arguments = ["preprocess", str(folder / "experiment.yaml"), "--workspace", str(folder / "workspace"), *options]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_peek_shows_documents_as_the_model_will_see_them_and_writes_nothing(tmp_path):
    write_corpus(tmp_path, ["A first one.", "word " * 1_000, "A third."])
    experiment(tmp_path, validation_fraction=0)
    shown = invoke(tmp_path, "--peek", "2")
    assert "--- train document 0: 4 tokens, 12 bytes" in shown
    assert "A first one.<|endoftext|>" in shown
    assert "[801 more tokens] <|endoftext|>" in shown
    assert "third" not in shown
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize("option", ["--json", "--fetch-only"])
def test_peek_does_nothing_else(tmp_path, option):
    write_corpus(tmp_path, texts())
    experiment(tmp_path)
    result = CliRunner().invoke(cli, ["preprocess", str(tmp_path / "experiment.yaml"), "--peek", "2", option])
    assert result.exit_code == 2
    assert "--peek prints documents as text and does nothing else" in result.output


def test_fetch_only_brings_the_tokenizer_and_packs_nothing(tmp_path):
    write_corpus(tmp_path, texts())
    what = experiment(tmp_path, tokenizer=TRAINED)
    assert "1 unit, 0 MB, the tokenizer: here" in invoke(tmp_path, "--fetch-only")
    dataset = Workspace(tmp_path / "workspace").dataset(what.data.dataset_name())
    assert [path.name for path in dataset.iterdir()] == ["tokenizer"]
    told = json.loads(invoke(tmp_path, "--fetch-only", "--json"))
    size = (tmp_path / "c.jsonl").stat().st_size
    assert told == {"dataset": what.data.dataset_name(), "units": 1, "bytes": size, "evaluation_sets": []}
