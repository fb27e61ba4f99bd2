"""Small corpora for the tests of preprocess, and what is asked about the workspaces that it makes of them."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from mistral.config import Experiment, load_experiment
from mistral.dataset import open_split
from mistral.files import sha256_of
from mistral.manifest import Manifest, Record
from mistral.progress import Silent
from mistral.workspace import Workspace
from mistral.yamltext import write_yaml
from pipeline.preprocess import PreprocessSummary, preprocess

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "conf" / "experiments" / "quickstart.yaml"
SMALL, LARGE = 500, 3_000


def texts(count: int = SMALL) -> list[str]:
    """Documents of 300 to 1,100 bytes; 3,000 of them are 2.1 MB."""
    source = random.Random(5)
    words = ["the", "king", "<|endoftext|>", "naïve", "日本", "\n", "says:", "42", "  "]
    return [" ".join(source.choices(words, k=source.randint(80, 240))) for _ in range(count)]


def experiment(folder: Path, **data: Any) -> Experiment:
    raw = load_experiment(str(QUICKSTART)).model_dump(mode="json")
    defaults = {"name": "corpus", "source": {"files": ["*.jsonl*"]}, "validation_fraction": 0.1, "unit_megabytes": 1}
    raw["data"] = defaults | data
    (folder / "experiment.yaml").write_text(write_yaml(raw))
    return load_experiment(str(folder / "experiment.yaml"))


def write_corpus(folder: Path, documents: list[str]) -> None:
    (folder / "c.jsonl").write_bytes(json_lines(documents))


def json_lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents).encode()


def run(folder: Path, what: Experiment, name: str = "workspace", **options: Any) -> PreprocessSummary:
    return preprocess(what, Workspace(folder / name), Silent(), **options)


def hashes(folder: Path, name: str = "workspace") -> dict[str, str]:
    root = folder / name / "data"
    return {str(path.relative_to(root)): sha256_of(path) for path in sorted(root.rglob("*")) if path.is_file()}


def snapshot(folder: Path, name: str = "workspace") -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in (folder / name).rglob("*")}


def seal_of(folder: Path, what: Experiment, name: str = "workspace") -> Record:
    found = Manifest(Workspace(folder / name)).find("preprocess", (what.data.dataset_name(), "dataset"))
    assert found is not None
    return found


def stream_of(folder: Path, what: Experiment, split: str) -> np.ndarray:
    """All tokens of a split, as training reads them."""
    stream = open_split(Workspace(folder / "workspace"), seal_of(folder, what), split, 1)
    return stream.read(np.arange(len(stream)))[:, 0]
