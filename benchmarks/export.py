"""What an exported revision costs, part by part, and how fast its tensors are written beside cp.

Records step 0 of a few seeds with a model of GPT-2 small's size, as training does, and exports each three times: with
tensors linked, copied (link(2) is made to fail, as between two file systems), and rounded to bf16. Then cp and the
exporter write the same tensors in turn. What is timed:

- cp: `cp SOURCE TARGET`, then `sync TARGET`, which is fsync(2) of that file; the start of both processes is inside.
- copied, bf16: the exporter's own function, which also hashes what it writes (and rounds it), then fsync of the file
  and of its folder; cp writes the same bytes, so beside bf16 it copies the rounded file.

Sources have been read just before, as by the exporter, which hashes a checkpoint first.

    OMP_NUM_THREADS=2 .venv/bin/python benchmarks/export.py --markdown
"""

import errno
import os
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch
from checkpoints import timed

from mistral import hub, tensorfiles
from mistral.config import Experiment, load_experiment
from mistral.evaluation import probe_sequences
from mistral.files import fsync_file, fsync_folder, sha256_of
from mistral.manifest import Manifest
from mistral.model import build_model, gpt2_config
from mistral.progress import Silent
from mistral.ranks import Ranks
from mistral.run import Run
from mistral.training import open_checkpoints
from mistral.workspace import Workspace
from pipeline.export import export
from pipeline.preprocess import preprocess
from pipeline.train import TrainOptions, owned

TIMED = (
    ("require_checkpoint", "checkpoint hashed"),
    ("place_tensors", "tensors linked or written"),
    ("check_probe", "parity: loaded, probe computed"),
    ("publish_folder", "flushed, named, recorded"),
    ("export_checkpoint", "all"),
)
WAYS = ("linked", "copied", "bf16")


def record_step_0(model: str, seeds: int, seq_len: int, workspace: Workspace) -> Experiment:
    """Record the initial weights of some seeds, with the probe that training would record."""
    numbers = ", ".join(f"s{seed}: {seed}" for seed in range(seeds))
    overrides = (f"model={{{model}}}", f"training.seq_len={seq_len}", f"seeds={{{numbers}}}")
    experiment = load_experiment("quickstart", overrides)
    preprocess(experiment, workspace, Silent())
    manifest = Manifest(workspace)
    dataset = manifest.get("preprocess", (experiment.data.dataset_name(), "dataset"), "")
    config = gpt2_config(experiment.model, dataset.facts["vocabulary_size"], dataset.facts["end_of_text_id"])
    for seed in experiment.seeds:
        run = Run(experiment, seed, manifest, dataset, Ranks(), 1, torch.device("cpu"))
        network = build_model(experiment.model, config, experiment.seeds[seed].init).eval()
        sequences = probe_sequences(run.streams["validation"])
        with torch.no_grad():
            input_ids = torch.tensor(sequences)  # (4, seq_len) int64
            loss = float(network(input_ids=input_ids, labels=input_ids).loss)
        facts = {"step": 0, "tokens": 0, "probe": {"loss": loss, "sequences": sequences}}
        tensors = {name: parameter.detach() for name, parameter in network.named_parameters()}
        with owned(run, TrainOptions()) as ownership, open_checkpoints(run, ownership) as checkpoints:
            checkpoints.save_weights(0, tensors, config.to_json_string(use_diff=False), facts)
            checkpoints.wait()
    return experiment


@contextmanager
def without_links() -> Iterator[None]:
    """Let tensors be linked nowhere, as between two file systems; records are."""
    link = os.link

    def refuse(source: Path, target: Path) -> None:
        if target.name == tensorfiles.MODEL:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target)

    os.link = refuse
    try:
        yield
    finally:
        os.link = link


def parts(experiment: Experiment, workspace: Workspace) -> tuple[dict[str, list[float]], float]:
    """Export every run; returns the seconds of each part of each revision, and CPU seconds of a revision."""
    times: dict[str, list[float]] = defaultdict(list)
    functions = {function: getattr(hub, function) for function, _ in TIMED}
    for function, name in TIMED:
        setattr(hub, function, timed(times, name, functions[function]))
    start = time.process_time()
    try:
        export(experiment, workspace, Silent())
    finally:
        for function, original in functions.items():
            setattr(hub, function, original)
    seconds = (time.process_time() - start) / len(times["all"])
    inside = zip(*(times[name] for _, name in TIMED[:-1]), strict=True)
    times["the rest"] = [whole - sum(some) for whole, some in zip(times.pop("all"), inside, strict=True)]
    return dict(times), seconds


def all_parts(experiment: Experiment, workspace: Workspace) -> dict[str, tuple[dict[str, list[float]], float]]:
    """The parts of an export in each of the ways."""
    manifest, measured = Manifest(workspace), {}
    rounded = experiment.export.model_copy(update={"dtype": "bf16"})
    measured["linked"] = parts(experiment, workspace)
    for seed in experiment.seeds:
        hub.withdraw_export(manifest, manifest.get("export", (experiment.run_name(seed), "checkpoint-0"), ""))
    with without_links():
        measured["copied"] = parts(experiment, workspace)
    measured["bf16"] = parts(experiment.model_copy(update={"export": rounded}), workspace)
    return measured


def copy(source: Path, target: Path) -> None:
    """What people would do."""
    subprocess.run(["cp", str(source), str(target)], check=True)
    subprocess.run(["sync", str(target)], check=True)


def write(function: Callable[[Path, Path], object], source: Path, target: Path) -> None:
    """What the exporter does."""
    with without_links():
        function(source, target)
    fsync_file(target)
    fsync_folder(target.parent)


def rates(source: Path, folder: Path, rounds: int) -> dict[str, list[float]]:
    """MB/s of cp and of the exporter, in turn, in fp32 and in bf16."""
    rounded = folder / "rounded.safetensors"
    tensorfiles.write_rounded(source, rounded)
    fsync_file(rounded)
    contenders = {
        "cp": lambda target: copy(source, target),
        "copied": lambda target: write(tensorfiles.link_or_copy, source, target),
        "cp of the bf16 file": lambda target: copy(rounded, target),
        "bf16": lambda target: write(tensorfiles.write_rounded, source, target),
    }
    measured: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, contender in contenders.items():
            target = folder / tensorfiles.MODEL
            target.unlink(missing_ok=True)
            fsync_folder(folder)
            sha256_of(source)
            start = time.monotonic()
            contender(target)
            measured[name].append(target.stat().st_size / 1e6 / (time.monotonic() - start))
    return measured


@click.command()
@click.option("--model", default="n_layer: 12, n_head: 12, n_embd: 768, n_positions: 1024", help="Model section.")
@click.option("--seeds", default=3, help="How many runs have their step 0 exported.")
@click.option("--seq-len", default=1024, help="Tokens of a sequence; the probe has four.")
@click.option("--rounds", default=7, help="How often each contender writes.")
@click.option("--markdown", is_flag=True, help="Print tables for docs/benchmarks.md.")
def main(model: str, seeds: int, seq_len: int, rounds: int, markdown: bool) -> None:
    """Measure what an export costs."""
    with tempfile.TemporaryDirectory(prefix="mistral-export-") as name:
        folder = Path(name)
        workspace = Workspace(folder / "workspace")
        experiment = record_step_0(model, seeds, seq_len, workspace)
        show_parts(all_parts(experiment, workspace), markdown)
        for run in map(experiment.run_name, experiment.seeds):
            probe = Manifest(workspace).get("export", (run, "checkpoint-0"), "").facts["probe"]
            moved = abs(probe["exported"] / probe["recorded"] - 1)
            print(f"{run}: rounding to bf16 changes the probe loss of {probe['recorded']:.4f} by {moved:.1e} of it")
        show_rates(rates(workspace.weights(run, 0) / tensorfiles.MODEL, folder, rounds), markdown)


def show_parts(measured: dict[str, tuple[dict[str, list[float]], float]], markdown: bool) -> None:
    """Print the median seconds of each part of a revision."""
    line = "| {} | {} | {} | {} |" if markdown else "{:32} {:>9} {:>9} {:>9}"
    print(line.format("part of a revision, median s", *WAYS) + ("\n|-|-:|-:|-:|" if markdown else ""))
    for name in measured["linked"][0]:
        print(line.format(name, *(f"{statistics.median(measured[way][0][name]):.3f}" for way in WAYS)))
    print(line.format("CPU seconds, all", *(f"{measured[way][1]:.2f}" for way in WAYS)), flush=True)


def show_rates(written: dict[str, list[float]], markdown: bool) -> None:
    """Print the median MB/s of the exporter beside that of cp, and the range of both."""
    line = "| {} | {} | {} | {} |" if markdown else "{:32} {:>18} {:>18} {:>6}"
    print(line.format("tensors written, MB/s", "exporter", "cp", "ratio") + ("\n|-|-:|-:|-:|" if markdown else ""))
    for ours, other in (("copied", "cp"), ("bf16", "cp of the bf16 file")):
        own, peer = written[ours], written[other]
        told = [f"{statistics.median(one):.0f} ({min(one):.0f} to {max(one):.0f})" for one in (own, peer)]
        print(line.format(ours, *told, f"{statistics.median(own) / statistics.median(peer):.2f}"))


if __name__ == "__main__":
    main()
