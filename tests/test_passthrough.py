"""Corpora that are token ids already: the ids in the shards are the ids of the source, or a clear refusal."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from corpora import ROOT, experiment, run, stream_of
from transformers import AutoModelForCausalLM

from mistral.config import Experiment
from mistral.errors import ConfigError, DataError
from mistral.yamltext import write_yaml
from pipeline.generate import generate

END, VOCABULARY = 99, 70_000
PASSTHROUGH = {"passthrough": {"vocab_size": VOCABULARY, "end_of_text_id": END}}
DOCUMENTS = [list(range(100, 100 + n)) for n in range(1, 80)]


def write_lines(folder: Path) -> dict[str, Any]:
    lines = [json.dumps({"input_ids": [*ids, END] if i % 2 else ids}) + "\n" for i, ids in enumerate(DOCUMENTS)]
    (folder / "c.jsonl").write_text("".join(lines))
    return {"files": ["c.jsonl"]}


def write_parquet(folder: Path) -> dict[str, Any]:
    column = pyarrow.array(DOCUMENTS, type=pyarrow.large_list(pyarrow.uint16()))
    pyarrow.parquet.write_table(pyarrow.table({"input_ids": column}), folder / "c.parquet", row_group_size=10)
    return {"files": ["c.parquet"]}


def write_dataset(folder: Path) -> dict[str, Any]:
    datasets.Dataset.from_dict({"input_ids": DOCUMENTS}).save_to_disk(folder / "saved")
    return {"hub": "saved"}


def of_ids(folder: Path, source: dict[str, Any], **data: Any) -> Experiment:
    options = {"tokenizer": PASSTHROUGH, "text_field": "input_ids", "validation_fraction": 0}
    return experiment(folder, source=source, **options, **data)


@pytest.mark.parametrize("write", [write_lines, write_parquet, write_dataset])
def test_ids_are_passed_on_with_end_of_text_once_after_each_document(tmp_path, write):
    what = of_ids(tmp_path, write(tmp_path))
    summary = run(tmp_path, what)
    assert (summary.facts["vocabulary_size"], summary.facts["end_of_text_id"]) == (VOCABULARY, END)
    expected = [number for ids in DOCUMENTS for number in (*ids, END)]
    stream = stream_of(tmp_path, what, "train")
    assert stream.tolist() == expected
    shard = tmp_path / "workspace" / "data" / summary.dataset / "train" / "00000.h5"
    assert shard.stat().st_size > 4 * len(expected)  # more than 65,535 ids take 4 bytes each


def test_ids_are_split_by_the_hash_of_their_bytes(tmp_path):
    what = of_ids(tmp_path, write_lines(tmp_path)).data.model_dump(mode="json") | {"validation_fraction": 0.2}
    summary = run(tmp_path, experiment(tmp_path, **what))
    chosen = [
        int.from_bytes(hashlib.sha256(np.array(ids, "<u4")).digest()[:8], "big") / 2**64 < 0.2 for ids in DOCUMENTS
    ]
    assert summary.facts["splits"]["validation"]["documents"] == sum(chosen) > 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input_ids": [1, 70000]}', "wrong ids .*ids from 1 to 70000, expected 0 to 69999"),
        ('{"input_ids": [-1]}', "wrong ids .*ids from -1 to -1"),
        ('{"input_ids": [1, 99, 2]}', "wrong ids .*the end-of-text id 99 inside a document"),
        ('{"input_ids": [1.5]}', "the field is not a list of ids"),
        ('{"input_ids": "text"}', "the field is not a list of ids"),
        ('{"text": "text"}', "no such field"),
    ],
)
def test_documents_that_are_no_ids_of_the_vocabulary_are_refused_by_line(tmp_path, line, message):
    source = write_lines(tmp_path)
    with (tmp_path / "c.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=rf"c\.jsonl, line 80: .*{message}(.|\n)*expected token ids"):
        run(tmp_path, of_ids(tmp_path, source))


def test_a_row_that_is_no_list_of_ids_is_refused_by_number(tmp_path):
    column = pyarrow.array([[1, 2], None, [70_000]], type=pyarrow.list_(pyarrow.int64()))
    pyarrow.parquet.write_table(pyarrow.table({"input_ids": column}), tmp_path / "c.parquet")
    what = of_ids(tmp_path, {"files": ["c.parquet"]}, on_bad_document="skip")
    with pytest.raises(DataError, match="found 3 tokens in the train split"):  # the only document, and its end
        run(tmp_path, what)


def test_ids_in_text_files_and_ids_with_a_detokenizer_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("1 2 3")
    with pytest.raises(DataError, match="expected token ids in jsonl, parquet or a dataset"):
        run(tmp_path, of_ids(tmp_path, {"files": ["a.txt"]}))
    with pytest.raises(ConfigError, match="found detokenizer wikitext for token ids, expected none"):
        of_ids(tmp_path, {"files": ["a.txt"]}, detokenizer="wikitext")
    with pytest.raises(ConfigError, match="found end_of_text_id 99, expected below vocab_size 99"):
        experiment(tmp_path, tokenizer={"passthrough": {"vocab_size": 99, "end_of_text_id": 99}})


TINY = {
    "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16,
}  # fmt: skip


def test_the_whole_line_runs_on_ids(tmp_path):
    """Preprocess, train, export; the exported model loads, and nothing pretends that there is a tokenizer."""
    source = write_lines(tmp_path)
    raw = of_ids(tmp_path, source).model_dump(mode="json") | {"model": TINY, "seeds": {"alias": 1}}
    raw["training"] |= {"max_steps": 2, "global_batch_size": 4, "micro_batch_size": 4, "seq_len": None}
    raw["checkpoints"] |= {"schedule": [[1, 2]]}
    (tmp_path / "experiment.yaml").write_text(write_yaml(raw))
    where = ["--workspace", str(tmp_path / "workspace")]
    command = [sys.executable, "-m", "pipeline.cli", "run", str(tmp_path / "experiment.yaml"), *where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "workspace" / "exports").glob("*/checkpoint-2")
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == VOCABULARY
    card = (folder / "README.md").read_text()
    assert "there is no tokenizer" in card
    assert "AutoTokenizer" not in card.split("```")[1]
    with pytest.raises(DataError, match="found no tokenizer, as the corpus was token ids"):
        generate(folder, "text", 1, 1.0, 1)
