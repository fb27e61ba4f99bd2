"""Datasets and GPT-2's vocabulary from a Hub on loopback: fetched once, at a commit that is recorded, then offline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from corpora import ROOT, experiment, seal_of, texts
from hub_server import Hub, serving

from mistral.files import sha256_of
from mistral.vocabulary import GPT2_ON_THE_HUB, GPT2_REVISION, installed_gpt2, write_gpt2

COMMAND = [sys.executable, "-m", "pipeline.cli", "preprocess"]


def lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def preprocess(folder: Path, endpoint: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """The command line, with this Hub, or offline if there is none."""
    arguments = [str(folder / "experiment.yaml"), "--workspace", str(folder / "workspace"), *options]
    hub = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"} if endpoint else {"HF_HUB_OFFLINE": "1"}
    own = {"HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment = {**os.environ, **own, **hub}
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """A corpus on a Hub, and an experiment of it and of its held-out split."""
    source = {"hub": "some/corpus", "validation_split": "test"}
    experiment(tmp_path, source=source, validation_fraction=0)
    return Hub()


def test_a_dataset_is_fetched_once_at_a_commit_that_is_recorded_and_then_needs_no_network(tmp_path, hub):
    files = {"data/train.jsonl": lines(texts()[:100]), "data/test.jsonl": lines(texts()[100:150])}
    commit = hub.commit("datasets/some/corpus", files)
    with serving(hub) as endpoint:
        fetched = preprocess(tmp_path, endpoint, "--fetch-only")
        assert fetched.returncode == 0, fetched.stderr
        hub.commit("datasets/some/corpus", {"data/train.jsonl": lines(["later"]), "data/test.jsonl": lines(["later"])})
        asked = len(hub.requests)
        assert preprocess(tmp_path, endpoint, "--fetch-only").returncode == 0
        assert len(hub.requests) == asked, "what is there is not fetched again"
    packed = preprocess(tmp_path, "", "--json")
    assert packed.returncode == 0, packed.stderr
    facts = json.loads(packed.stdout)["facts"]
    assert {split: totals["documents"] for split, totals in facts["splits"].items()} == {"train": 100, "validation": 50}
    assert facts["sources"][0]["commit"] == commit
    what = experiment(tmp_path, source={"hub": "some/corpus", "validation_split": "test"}, validation_fraction=0)
    assert seal_of(tmp_path, what).facts["sources"][0]["commit"] == commit


def test_a_dry_run_fetches_nothing(tmp_path, hub):
    with serving(hub) as endpoint:
        done = preprocess(tmp_path, endpoint, "--cluster", "slurm-a100", "--dry-run")
    assert done.returncode == 1
    assert "expected the fetched dataset; run preprocess with --fetch-only" in done.stderr
    assert hub.requests == []
    assert not (tmp_path / "workspace" / "sources").exists()


def test_a_dataset_that_is_not_there_or_cannot_be_reached_is_refused_with_advice(tmp_path, hub):
    with serving(hub) as endpoint:
        missing = preprocess(tmp_path, endpoint)
    unreachable = preprocess(tmp_path, "")
    for done in (missing, unreachable):
        assert done.returncode == 1
        assert "data.source.hub: found no dataset some/corpus at revision main" in done.stderr
        assert "run preprocess where there is one" in done.stderr
        assert "Traceback" not in done.stderr
    assert not list((tmp_path / "workspace" / "sources").iterdir())


def test_gpt2s_vocabulary_is_fetched_at_its_pinned_commit_and_gives_the_same_file(tmp_path):
    encoder, merges = installed_gpt2()
    hub = Hub()
    hub.commits[f"models/{GPT2_ON_THE_HUB}"] = {
        GPT2_REVISION: {"vocab.json": encoder.read_bytes(), "merges.txt": merges.read_bytes()},
        "0" * 40: {"vocab.json": b"{}", "merges.txt": b""},  # main has moved on
    }
    code = (
        "import sys; from pathlib import Path; from mistral import vocabulary;"
        "vocabulary.write_gpt2(Path(sys.argv[1]), *vocabulary._downloaded_gpt2())"
    )
    for name in ("fetched", "installed"):
        (tmp_path / name).mkdir()
    with serving(hub) as endpoint:
        own = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", code, str(tmp_path / "fetched")]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, check=True, timeout=120)
    write_gpt2(tmp_path / "installed", encoder, merges)
    assert sha256_of(tmp_path / "fetched" / "tokenizer.json") == sha256_of(tmp_path / "installed" / "tokenizer.json")
