"""Preprocess under fire: kills at random moments, a source that changes, a tokenizer that errs, documents of 100 MB."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
from corpora import ROOT, experiment, hashes, run, seal_of, texts, write_corpus

from mistral.errors import DataError, ManifestError
from mistral.manifest import Manifest
from mistral.tokens import FastEngine, read_tokenizer
from mistral.vocabulary import installed_gpt2, write_gpt2
from mistral.workspace import Workspace
from pipeline import preprocess as stage

KILLS = 24

# Imports once, then forks a child for each attempt: kills it after so many seconds, or lets it end.
ATTEMPTS = """
import os, signal, sys, time
from pathlib import Path
from mistral.config import load_experiment
from mistral.progress import Silent
from mistral.workspace import Workspace
from pipeline.preprocess import preprocess
import h5py, mistral.units, tokenizers

experiment, workspace = load_experiment(sys.argv[1]), Workspace(Path(sys.argv[2]))
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        preprocess(experiment, workspace, Silent(), workers=2)
        os._exit(0)
    time.sleep(float(line))
    if float(line) < 60:
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_kills_at_random_moments_leave_no_wrong_shard_and_cost_only_the_unit_in_hand(tmp_path):
    write_corpus(tmp_path, texts(9_000))
    what = experiment(tmp_path)
    run(tmp_path, what)
    command = [sys.executable, "-c", ATTEMPTS, str(tmp_path / "experiment.yaml"), str(tmp_path / "killed")]
    manifest, dataset = Manifest(Workspace(tmp_path / "killed")), what.data.dataset_name()
    moments, recorded, killed = random.Random(31), set[str](), 0
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as attempts:
        while killed < KILLS:  # on a fast machine many attempts end before they are killed
            status = _attempt(attempts, moments.uniform(0.0, 0.7))
            killed += status == -signal.SIGKILL
            now = set(manifest.names("preprocess", (dataset,)))
            assert recorded <= now
            for name in now:
                assert manifest.damage(manifest.get("preprocess", (dataset, name), "")) == []
            recorded = now
            if "dataset" in recorded:  # whole: take units away again, so that there is work to be killed in
                for name in ("dataset", *moments.sample(sorted(recorded - {"dataset"}), 4)):
                    manifest.remove("preprocess", (dataset, name))
                recorded = set(manifest.names("preprocess", (dataset,)))
    run(tmp_path, what, "killed")
    assert _without_leftovers(hashes(tmp_path, "killed")) == hashes(tmp_path)
    assert seal_of(tmp_path, what, "killed").content == seal_of(tmp_path, what).content


def _attempt(attempts: "subprocess.Popen[str]", seconds: float) -> int:
    assert attempts.stdin is not None and attempts.stdout is not None
    attempts.stdin.write(f"{seconds}\n")
    attempts.stdin.flush()
    return int(attempts.stdout.readline())


def _without_leftovers(found: dict[str, str]) -> dict[str, str]:
    """Files that count: what a kill left beside them is removed when it is an hour old."""
    return {name: digest for name, digest in found.items() if not name.endswith(".tmp") and "/." not in name}


@pytest.mark.parametrize("options", [{"workers": 3}, {"tasks": 7}], ids=str)
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_shards_do_not_depend_on_the_engine_the_threads_or_the_tasks(tmp_path, corpus, options, engine):
    run(tmp_path, corpus)
    other = experiment(tmp_path, tokenizer_engine=engine)
    assert other.data.dataset_name() == corpus.data.dataset_name()
    tasks = range(options.get("tasks", 1))
    for task in tasks:
        run(tmp_path, other, "other", **options, task=task if len(tasks) > 1 else None)
    assert hashes(tmp_path, "other") == hashes(tmp_path)


def test_a_tokenizer_that_differs_from_the_reference_stops_the_unit(tmp_path, corpus, monkeypatch):
    honest = FastEngine.encode

    def wrong(self, texts):
        ids, ends = honest(self, texts)
        return np.where(ids == ids.max(), ids - 1, ids), ends

    monkeypatch.setattr(FastEngine, "encode", wrong)
    with pytest.raises(DataError, match=r"Hugging Face's tokenizer gives(.|\n)*data\.tokenizer_engine: reference"):
        run(tmp_path, corpus)
    assert Manifest(Workspace(tmp_path / "workspace")).names("preprocess", (corpus.data.dataset_name(),)) == []


def test_a_source_that_changes_between_the_plan_and_the_end_of_reading_is_refused(tmp_path, corpus, monkeypatch):
    planned = stage.plan_units

    def plan_then_touch(*arguments, **options):
        plan = planned(*arguments, **options)
        os.utime(tmp_path / "c.jsonl", (1, 1))
        return plan

    monkeypatch.setattr(stage, "plan_units", plan_then_touch)
    with pytest.raises(DataError, match=r"c\.jsonl: found .* bytes of 1970(.|\n)*run preprocess again"):
        run(tmp_path, corpus)
    monkeypatch.undo()
    assert run(tmp_path, corpus).packed_now == 1


def test_a_source_edited_at_the_same_size_between_two_tasks_is_refused_and_one_only_touched_is_not(tmp_path):
    experiment_of_size = {"name": "plain", "source": {"files": ["p.txt", "q.txt"]}, "validation_fraction": 0}
    for name in ("p.txt", "q.txt"):
        (tmp_path / name).write_text("the king " * 100_000)
    plain = experiment(tmp_path, **experiment_of_size)
    run(tmp_path, plain, "edited", tasks=2, task=0)
    (tmp_path / "p.txt").write_text("THE king " * 100_000)
    with pytest.raises(ManifestError, match=r"unit 00000: other documents of the same size(.|\n)*put the files back"):
        run(tmp_path, plain, "edited", tasks=2, task=1)
    (tmp_path / "p.txt").write_text("the king " * 100_000)
    assert run(tmp_path, plain, "edited", tasks=2, task=1).facts is not None


def test_the_shares_of_several_sources_are_recorded_and_no_unit_mixes_them(tmp_path):
    (tmp_path / "more").mkdir()
    write_corpus(tmp_path, texts()[:100])
    write_corpus(tmp_path / "more", texts()[100:])
    what = experiment(tmp_path, source=[{"files": ["c.jsonl"]}, {"files": ["more/*.jsonl"]}], validation_fraction=0)
    summary = run(tmp_path, what)
    assert summary.units == 2
    assert [share["documents"] for share in summary.facts["sources"]] == [100, 400]
    assert "shares of the sources, in tokens: " in summary.as_text()


def test_validation_documents_are_listed_by_hash_and_place(tmp_path, corpus):
    summary = run(tmp_path, corpus)
    path = tmp_path / "workspace" / "data" / summary.dataset / "validation_documents.jsonl"
    listed = [json.loads(line) for line in path.read_text().splitlines()]
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in texts()]
    assert [entry["sha256"] for entry in listed] == [d for d in digests if int(d[:16], 16) / 2**64 < 0.1]
    assert listed[0] | {"sha256": ""} == {"unit": "00000", "document": 0, "sha256": "", "bytes": listed[0]["bytes"]}
    assert len(listed) == summary.facts["splits"]["validation"]["documents"]


MEASURE = """
import json, re, sys
from pathlib import Path
from mistral.config import load_experiment
from mistral.progress import Silent
from mistral.workspace import Workspace
from pipeline.preprocess import preprocess
summary = preprocess(load_experiment(sys.argv[1]), Workspace(Path(sys.argv[2])), Silent(), workers=2)
status = Path("/proc/self/status").read_text()  # the peak of this process: ru_maxrss is its parent's too
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1])
print(json.dumps([peak, summary.facts["splits"]["train"]]))
"""


def test_documents_of_100_megabytes_stay_within_the_memory_that_is_promised(tmp_path):
    words = ["the", "king", "of", "a", "long", "winter", "says:", "\n", "don't"]
    long = " ".join(random.Random(1).choices(words, k=23_000_000)) + "\U0001f600"  # held in 4 bytes a character
    assert len(long) > 99_000_000
    with (tmp_path / "c.jsonl").open("w") as file:
        for text in ("short " * 200, long, long, "short"):
            file.write(json.dumps({"text": text}) + "\n")
    experiment(tmp_path, unit_megabytes=256, validation_fraction=0)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "experiment.yaml"), str(tmp_path / "workspace")]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=240)
    peak, train = json.loads(done.stdout)
    assert train["documents"] == 4
    assert train["text_bytes"] == 2 * len(long.encode()) + 1205
    assert peak < 1_500_000_000


def test_every_code_point_has_the_reference_ids_in_four_contexts(tmp_path):
    """1.1 million code points: after a letter, after a space, doubled before a contraction, after a digit."""
    write_gpt2(tmp_path, *installed_gpt2())
    fast, reference = (read_tokenizer(tmp_path, engine) for engine in ("fast", "reference"))
    characters = [chr(number) for number in range(0x110000) if not 0xD800 <= number <= 0xDFFF]
    for start in range(0, len(characters), 50_000):
        chosen = characters[start : start + 50_000]
        documents = ["".join(f"a{c} {c}{c}'s 1{c}." for c in chosen[i : i + 50]) for i in range(0, len(chosen), 50)]
        found, expected = fast.encode(documents), reference.encode(documents)
        assert np.array_equal(found.tokens, expected.tokens), f"from code point {start}"
