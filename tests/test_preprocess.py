"""The promises of preprocess: the same shards however the work was cut, killed or repeated; a seal to be trusted."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpora import (
    LARGE,
    QUICKSTART,
    ROOT,
    SMALL,
    experiment,
    hashes,
    run,
    seal_of,
    snapshot,
    stream_of,
    texts,
    write_corpus,
)

from mistral import lines, packing
from mistral.config import Experiment, load_experiment
from mistral.corpus import Piece, Unit
from mistral.errors import DataError, ManifestError, StorageError
from mistral.files import sha256_of
from mistral.manifest import Manifest
from mistral.progress import Silent
from mistral.shards import locate_tokens, read_document_starts, read_facts
from mistral.tokens import read_tokenizer
from mistral.workspace import Workspace
from pipeline import preprocess as stage
from pipeline.preprocess import tasks_of

END_OF_TEXT = 50256


@pytest.fixture
def cut_corpus(tmp_path: Path) -> Experiment:
    """One file of lines, cut into three units of at most a megabyte."""
    write_corpus(tmp_path, texts(LARGE))
    return experiment(tmp_path)


# --- what is in the shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("corpus", SMALL), ("cut_corpus", LARGE)])
def test_every_document_is_in_its_split_once_in_order_and_ends_with_end_of_text(tmp_path, request, name, count):
    corpus, documents = request.getfixturevalue(name), texts(count)
    summary = run(tmp_path, corpus)
    assert summary.units == 3
    tokenizer = read_tokenizer(Workspace(tmp_path / "workspace").tokenizer(summary.dataset))
    found = {}
    for split in ("train", "validation"):
        ids = stream_of(tmp_path, corpus, split)
        assert ids[-1] == END_OF_TEXT
        ends = np.flatnonzero(ids == END_OF_TEXT)
        found[split] = [tokenizer.decode(part[part != END_OF_TEXT]) for part in np.split(ids, ends + 1)[:-1]]
        assert summary.facts["splits"][split]["tokens"] == len(ids)
        assert summary.facts["splits"][split]["documents"] == len(ends)
    chosen = [int(hashlib.sha256(t.encode()).hexdigest()[:16], 16) / 2**64 < 0.1 for t in documents]
    assert found["validation"] == [text for text, is_chosen in zip(documents, chosen, strict=True) if is_chosen]
    assert found["train"] == [text for text, is_chosen in zip(documents, chosen, strict=True) if not is_chosen]


def test_a_shard_says_where_its_documents_start_and_what_made_it(tmp_path, corpus):
    summary = run(tmp_path, corpus)
    workspace = Workspace(tmp_path / "workspace")
    for unit in ("00000", "00001", "00002"):
        path = workspace.shard(summary.dataset, "train", unit)
        facts, starts, ids = read_facts(path), read_document_starts(path), locate_tokens(path).map()
        assert (facts.split, facts.unit, facts.documents, facts.end_of_text_id) == ("train", unit, len(starts), 50256)
        assert facts.tokenizer_sha256 == sha256_of(workspace.tokenizer(summary.dataset) / "tokenizer.json")
        assert starts[0] == 0
        assert (ids[starts[1:] - 1] == END_OF_TEXT).all()


def test_tokens_that_spill_to_disk_give_the_same_shards(tmp_path, corpus, monkeypatch):
    run(tmp_path, corpus)
    monkeypatch.setattr(packing, "SPILL_BYTES", 2_000)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 5_000)
    run(tmp_path, corpus, "spilled")
    assert hashes(tmp_path, "spilled") == hashes(tmp_path)


def test_validation_files_are_used_as_they_are(tmp_path):
    write_corpus(tmp_path, texts()[:200])
    (tmp_path / "valid.txt").write_text("held out " * 300)
    source = {"files": ["c.jsonl"], "validation_files": ["valid.txt"]}
    summary = run(tmp_path, experiment(tmp_path, source=source, validation_fraction=0))
    assert summary.facts["splits"]["train"]["documents"] == 200
    assert summary.facts["splits"]["validation"]["documents"] == 1


def test_the_quickstart_has_two_splits_that_are_worth_measuring(tmp_path):
    summary = run(tmp_path, load_experiment(str(QUICKSTART)))
    documents = {split: totals["documents"] for split, totals in summary.facts["splits"].items()}
    assert documents == {"train": 34, "validation": 4}
    assert summary.facts["splits"]["validation"]["tokens"] > 100_000
    assert "validation: 4 documents" in summary.as_text()


# --- tasks, kills, repetitions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [2, 7])
def test_shards_do_not_depend_on_the_tasks_or_their_order(tmp_path, corpus, tasks):
    run(tmp_path, corpus)
    summaries = [run(tmp_path, corpus, "cut", tasks=tasks, task=task) for task in reversed(range(tasks))]
    assert hashes(tmp_path, "cut") == hashes(tmp_path)
    assert seal_of(tmp_path, corpus, "cut").content == seal_of(tmp_path, corpus).content
    assert summaries[0].facts is None
    assert summaries[-1].facts is not None
    assert sum(summary.packed_now for summary in summaries) == 3


def test_tasks_hold_each_unit_once_in_contiguous_groups_of_about_equal_bytes():
    units = tuple(Unit(f"{i:05d}", (Piece("a", ".txt", 0, 1, 100 + i % 7, "train"),)) for i in range(100))
    for tasks in (1, 3, 8, 100, 250):
        groups = [tasks_of(units, tasks, task) for task in range(tasks)]
        assert [unit for group in groups for unit in group] == list(units)
        sizes = [sum(unit.bytes() for unit in group) for group in groups]
        assert max(sizes) - min(sizes) <= 2 * 106


KILLED_WHILE_IT_WRITES = """
import os, signal, sys
from pathlib import Path
from mistral.config import load_experiment
from mistral.progress import Silent
from mistral.workspace import Workspace
from mistral import units
from pipeline.preprocess import preprocess

write = units.write_shard
def write_half(path, facts, blocks, starts):
    def halves():
        for block in blocks:
            yield block[: len(block) // 2]
            if path.stem == "00001":
                os.kill(os.getpid(), signal.SIGKILL)
            yield block[len(block) // 2 :]
    write(path, facts, halves(), starts)
units.write_shard = write_half
preprocess(load_experiment(sys.argv[1]), Workspace(Path(sys.argv[2])), Silent())
"""


def test_a_stage_killed_in_the_middle_of_a_unit_ends_with_the_same_bytes(tmp_path, corpus):
    command = [
        sys.executable,
        "-c",
        KILLED_WHILE_IT_WRITES,
        str(tmp_path / "experiment.yaml"),
        str(tmp_path / "killed"),
    ]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    manifest = Manifest(Workspace(tmp_path / "killed"))
    assert manifest.names("preprocess", (corpus.data.dataset_name(),)) == ["00000"]
    leftovers = list((tmp_path / "killed").rglob(".00001.h5.*.tmp"))
    assert len(leftovers) == 1
    os.utime(leftovers[0], (0, 0))
    summary = run(tmp_path, corpus, "killed")
    run(tmp_path, corpus)
    assert summary.packed_now == 2
    assert hashes(tmp_path, "killed") == hashes(tmp_path)


def test_a_leftover_that_another_task_may_be_writing_stays(tmp_path, corpus):
    folder = Workspace(tmp_path / "workspace").dataset(corpus.data.dataset_name()) / "train"
    folder.mkdir(parents=True)
    (folder / ".00000.h5.17.abcd.tmp").write_bytes(b"of another process")
    run(tmp_path, corpus)
    assert (folder / ".00000.h5.17.abcd.tmp").exists()


def test_two_processes_that_pack_the_same_units_do_no_harm(tmp_path, corpus):
    code = (
        "import sys; from pathlib import Path; from mistral.config import load_experiment;"
        "from mistral.progress import Silent; from mistral.workspace import Workspace;"
        "from pipeline.preprocess import preprocess;"
        "preprocess(load_experiment(sys.argv[1]), Workspace(Path(sys.argv[2])), Silent())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "experiment.yaml"), str(tmp_path / "shared")]
    both = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    run(tmp_path, corpus)
    assert hashes(tmp_path, "shared") == hashes(tmp_path)


def test_a_run_with_nothing_to_do_changes_no_file(tmp_path, corpus):
    first = run(tmp_path, corpus)
    before = snapshot(tmp_path)
    again = run(tmp_path, corpus, tasks=2, task=1)
    assert snapshot(tmp_path) == before
    assert (again.packed_now, again.facts) == (0, first.facts)


def test_a_sealed_dataset_outlives_its_source(tmp_path, corpus):
    first = run(tmp_path, corpus)
    for path in tmp_path.glob("*.jsonl*"):
        path.unlink()
    assert run(tmp_path, corpus).facts == first.facts


# --- refusals ---------------------------------------------------------------------------------------------------


def test_one_flipped_bit_in_a_shard_is_refused_by_name(tmp_path, corpus):
    dataset = run(tmp_path, corpus).dataset
    path = Workspace(tmp_path / "workspace").shard(dataset, "train", "00001")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ManifestError, match=r"train/00001\.h5: found sha256"):
        stream_of(tmp_path, corpus, "train")
    assert len(stream_of(tmp_path, corpus, "validation"))


@pytest.mark.parametrize("hashed_below", [0, 1_000_000_000])
def test_a_shard_that_is_short_or_gone_is_refused_in_a_dataset_of_any_size(tmp_path, corpus, monkeypatch, hashed_below):
    monkeypatch.setattr("mistral.dataset.HASHED_BELOW_BYTES", hashed_below)
    workspace, dataset = Workspace(tmp_path / "workspace"), run(tmp_path, corpus).dataset
    path = workspace.shard(dataset, "train", "00001")
    os.truncate(path, path.stat().st_size - 1)
    workspace.shard(dataset, "train", "00002").unlink()
    with pytest.raises(
        ManifestError, match=r"found 2 shards(.|\n)*00001\.h5: found \d+ bytes(.|\n)*00002\.h5: No such"
    ):
        stream_of(tmp_path, corpus, "train")


@pytest.mark.parametrize("sealed", [True, False])
def test_a_source_that_changed_is_refused_with_the_difference(tmp_path, corpus, sealed):
    run(tmp_path, corpus, **({} if sealed else {"tasks": 3, "task": 0}))
    before = hashes(tmp_path)
    with (tmp_path / "c.jsonl").open("a") as file:
        file.write(json.dumps({"text": "more"}) + "\n")
    (tmp_path / "0.jsonl").write_text('{"text": "a new file"}\n')
    with pytest.raises(ManifestError, match=r"0\.jsonl was absent bytes, is 23(.|\n)*another data\.name"):
        run(tmp_path, corpus)
    assert hashes(tmp_path) == before


def test_a_shard_that_is_lost_before_the_seal_is_noticed(tmp_path, corpus):
    dataset = run(tmp_path, corpus, tasks=3, task=0).dataset
    Workspace(tmp_path / "workspace").shard(dataset, "train", "00000").unlink()
    with pytest.raises(ManifestError, match=r"00000\.h5: No such file"):
        run(tmp_path, corpus)
    assert Manifest(Workspace(tmp_path / "workspace")).find("preprocess", (dataset, "dataset")) is None


@pytest.mark.parametrize(("fraction", "split"), [(1e-12, "validation"), (1 - 1e-12, "train")])
def test_a_split_without_a_sequence_is_refused_before_the_seal(tmp_path, fraction, split):
    write_corpus(tmp_path, texts()[:20])
    what = experiment(tmp_path, validation_fraction=fraction)
    with pytest.raises(DataError, match=rf"found 0 tokens in the {split} split, expected at least one sequence of 128"):
        run(tmp_path, what)
    key = (what.data.dataset_name(), "dataset")
    assert Manifest(Workspace(tmp_path / "workspace")).find("preprocess", key) is None


def test_a_bad_document_stops_the_stage_and_says_where_and_what_to_do(tmp_path, corpus):
    with (tmp_path / "c.jsonl").open("ab") as file:
        file.write(b'{"text": 7}\n')
    with pytest.raises(DataError, match=r"c\.jsonl, line 201: .*the field is not text(.|\n)*on_bad_document: skip"):
        run(tmp_path, corpus)


def test_bad_and_empty_documents_are_skipped_and_counted_where_that_is_asked_for(tmp_path):
    write_corpus(tmp_path, ["", *texts()[:100]])
    with (tmp_path / "c.jsonl").open("ab") as file:
        file.write(b'{"text": 7}\nnothing\n\n{"text": 8}\n')
    summary = run(tmp_path, experiment(tmp_path, on_bad_document="skip", validation_fraction=0))
    assert summary.facts["skipped"] == {"empty": 1, "not JSON": 1, "the field is not text": 2}
    assert summary.facts["splits"]["train"]["documents"] == 100


def test_a_full_disk_is_told_as_such_and_nothing_half_written_counts(tmp_path, corpus):
    """A limit on the size of files stands in for the disk: write(2) fails in the middle of a shard."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    run(tmp_path, corpus, tasks=3, task=0)  # the tokenizer and two units
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot write .*00002\.h5(.|\n)*run the same command again"):
            run(tmp_path, corpus)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "workspace").rglob("*00002*")) == []
    assert run(tmp_path, corpus).packed_now == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_progress_adds_up_to_the_megabytes_of_the_source(tmp_path, cut_corpus, suffix):
    class Counting(Silent):
        total, done = 0, 0

        def start(self, name: str, total: int, unit: str, done: int = 0) -> None:
            assert unit == "MB"
            self.total, self.done = total, done

        def advance(self, amount: int = 1, **facts: float) -> None:
            self.done += amount

    progress = Counting()
    if suffix == ".txt":  # one document as large as its file
        (tmp_path / "c.jsonl").rename(tmp_path / "c.txt")
        cut_corpus = experiment(tmp_path, source={"files": ["c.txt"]}, validation_fraction=0)
    stage.preprocess(cut_corpus, Workspace(tmp_path / "workspace"), progress)
    assert progress.total == (tmp_path / f"c{suffix}").stat().st_size / 1e6
    assert progress.done == pytest.approx(progress.total)
