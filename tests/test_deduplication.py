"""The promises of deduplication.py: of the same document the first stays, however the work is cut or interrupted."""

import gzip
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corpora import experiment, hashes, run, seal_of, snapshot, stream_of, texts
from hypothesis import given
from hypothesis import strategies as st

from mistral.config import Experiment
from mistral.manifest import Manifest, Record, make_record
from mistral.packing import Part
from mistral.progress import Silent
from mistral.tokens import Encoded, read_tokenizer
from mistral.workspace import Workspace
from pipeline.verify import verify

END_OF_TEXT = 50256


def of_files(folder: Path, *files: list[str], **data: object) -> Experiment:
    """One unit a file."""
    for number, documents in enumerate(files):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return experiment(folder, deduplicate="exact", **data)


def test_the_first_of_the_same_documents_stays_within_units_and_across_them(tmp_path):
    some = texts()[:300]
    files = [some[:200], some[100:250], [*some[200:], some[0], some[0], ""]]
    what = of_files(tmp_path, *files, validation_fraction=0)
    summary = run(tmp_path, what)
    assert summary.facts["splits"]["train"]["documents"] == 300
    assert summary.facts["skipped"] == {"duplicate": 100 + 50 + 2, "empty": 1}
    assert "duplicate" in summary.as_text()
    ids = stream_of(tmp_path, what, "train")
    tokenizer = read_tokenizer(Workspace(tmp_path / "workspace").tokenizer(summary.dataset))
    parts = np.split(ids, np.flatnonzero(ids == END_OF_TEXT) + 1)[:-1]
    assert [tokenizer.decode(part[:-1]) for part in parts] == some


@pytest.mark.parametrize("tasks", [2, 3])
def test_tasks_hash_first_and_pack_once_all_hashes_are_recorded(tmp_path, tasks):
    some = texts()
    what = of_files(tmp_path, some[:300], some[200:400], some[100:])
    run(tmp_path, what)
    first = [run(tmp_path, what, "cut", tasks=tasks, task=task) for task in reversed(range(tasks))]
    assert [summary.packed_now for summary in first[:-1]] == [0] * (tasks - 1)  # the last one could pack its own
    second = [run(tmp_path, what, "cut", tasks=tasks, task=task, workers=2) for task in range(tasks)]
    assert second[-1].facts is not None
    assert hashes(tmp_path, "cut") == hashes(tmp_path)
    assert seal_of(tmp_path, what, "cut").content == seal_of(tmp_path, what).content
    before = snapshot(tmp_path, "cut")
    run(tmp_path, what, "cut", tasks=tasks, task=0)
    assert snapshot(tmp_path, "cut") == before


def test_validation_documents_are_deduplicated_among_themselves(tmp_path):
    some = texts()
    what = of_files(tmp_path, some, some)
    summary = run(tmp_path, what)
    digests = [hashlib.sha256(text.encode()).digest() for text in some]
    chosen = sum(int.from_bytes(digest[:8], "big") / 2**64 < 0.1 for digest in digests)
    documents = {split: totals["documents"] for split, totals in summary.facts["splits"].items()}
    assert documents == {"train": 500 - chosen, "validation": chosen}


def verified(folder: Path) -> str:
    return "\n".join(verify(Workspace(folder / "workspace"), Silent()).problems)


def forged(manifest: Manifest, old: Record, **changes: object) -> None:
    parts = {"config": old.config, "inputs": old.inputs, "files": old.files, "facts": old.facts}
    manifest.remove("preprocess", old.key)
    manifest.publish(make_record(old.kind, old.key, **(parts | changes)))


def test_a_dataset_without_duplicates_is_verified_to_the_hashes_of_its_documents(tmp_path):
    some = texts()[:90]
    what = of_files(tmp_path, some[:60], some[30:])
    dataset = run(tmp_path, what).dataset
    manifest = Manifest(Workspace(tmp_path / "workspace"))
    assert verified(tmp_path) == ""

    def record(name: str) -> Record:
        return manifest.get("preprocess", (dataset, name), "")

    first, second, compared = record("hashes-00000"), record("hashes-00001"), record("duplicates")
    files = [replace(its, path=mine.path) for mine, its in zip(first.files, second.files, strict=True)]
    for mine, its in zip(first.files, second.files, strict=True):
        shutil.copyfile(manifest.workspace.inside(its.path), manifest.workspace.inside(mine.path))
    assert f"{first.files[0].path}: found {second.files[0].bytes} bytes, expected {first.files[0].bytes}" in verified(
        tmp_path
    )
    forged(manifest, first, files=files)  # a record that fits the other unit's hashes
    told = verified(tmp_path)
    assert f"expected {first.files[0].sha256} by the documents of preprocess/unit {dataset}/00000" in told
    assert f"preprocess/duplicates {dataset}/duplicates: its hashes-00000 is {first.content[:12]}, expected" in told
    manifest.remove("preprocess", compared.key)
    assert f"preprocess/unit {dataset}/00001: made from preprocess/{dataset}/duplicates, which is" in verified(tmp_path)
    unit = record("00001")
    manifest.publish(compared)
    forged(manifest, unit, inputs={})
    assert f"preprocess/unit {dataset}/00001: its duplicates is None, expected {compared.content[:12]}" in verified(
        tmp_path
    )


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=20), data=st.data())
def test_a_part_keeps_the_tokens_of_the_documents_that_it_keeps(lengths, data):
    ends = np.cumsum([length + 1 for length in lengths])
    numbers = list(range(len(lengths)))
    part = Part(Encoded(np.arange(ends[-1]), ends), [bytes([number]) for number in numbers], numbers)
    kept = sorted(data.draw(st.sets(st.sampled_from(numbers))))
    left = part.only(kept)
    assert left.sizes == kept
    assert [left.encoded.document(i).tolist() for i in range(len(kept))] == [
        part.encoded.document(i).tolist() for i in kept
    ]
