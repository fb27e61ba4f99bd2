"""What an exported revision costs, part by part, and how fast its tensors are written beside cp.

Records a few steps of a run with a model of GPT-2 small's size, as training does, and exports each three times: with
tensors linked, copied (link(2) is made to fail, as between two file systems), and rounded to bf16. The first one is
checked on the whole probe, the others on its beginning. Then cp and the exporter write the same tensors in turn. What
is timed:

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
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import click
import torch
from checkpoints import timed

from mistral import hub, tensorfiles
from mistral.config import Experiment, load_experiment
from mistral.evaluation import PREFIX_TOKENS, probe_losses, probe_sequences
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


def record_steps(model: str, steps: int, seq_len: int, workspace: Workspace) -> Experiment:
    """Record weights of a run at a few steps, with the probe that training would record; each differs a little."""
    overrides = (f"model={{{model}}}", f"training.seq_len={seq_len}", "seeds={one: 1}")
    overrides += (f"training.max_steps={steps - 1}", f"checkpoints.schedule=[[1, {steps - 1}]]")
    experiment = load_experiment("quickstart", overrides)
    preprocess(experiment, workspace, Silent())
    manifest = Manifest(workspace)
    dataset = manifest.get("preprocess", (experiment.data.dataset_name(), "dataset"), "")
    config = gpt2_config(experiment.model, dataset.facts["vocabulary_size"], dataset.facts["end_of_text_id"])
    run = Run(experiment, "one", manifest, dataset, Ranks(), 1, torch.device("cpu"))
    network = build_model(experiment.model, config, 1).eval()
    engine = SimpleNamespace(module=network, device=torch.device("cpu"), eval=network.eval, train=network.eval)
    sequences = probe_sequences(run.streams["validation"])
    with owned(run, TrainOptions()) as ownership, open_checkpoints(run, ownership) as checkpoints:
        for step in range(steps):
            with torch.no_grad():
                network.transformer.wte.weight.mul_(1.01)
            loss, prefix = probe_losses(engine, sequences)
            beginning = {"tokens": min(PREFIX_TOKENS, seq_len), "loss": prefix}
            probe = {"loss": loss, "prefix": beginning, "sequences": sequences}
            tensors = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
            facts = {"step": step, "tokens": 0, "probe": probe}
            checkpoints.save_weights(step, tensors, config.to_json_string(use_diff=False), facts)
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


@dataclass(frozen=True)
class Cost:
    """Median seconds of each part of a revision, and CPU seconds of all."""

    parts: dict[str, float]
    cpu_seconds: float


def cost(experiment: Experiment, workspace: Workspace, steps: list[int]) -> Cost:
    """Export some steps."""
    times: dict[str, list[float]] = defaultdict(list)
    functions = {function: getattr(hub, function) for function, _ in TIMED}
    for function, name in TIMED:
        setattr(hub, function, timed(times, name, functions[function]))
    start = time.process_time()
    try:
        export(experiment, workspace, Silent(), steps=steps)
    finally:
        for function, original in functions.items():
            setattr(hub, function, original)
    seconds = (time.process_time() - start) / len(steps)
    inside = zip(*(times[name] for _, name in TIMED[:-1]), strict=True)
    times["the rest"] = [whole - sum(some) for whole, some in zip(times.pop("all"), inside, strict=True)]
    return Cost({name: statistics.median(some) for name, some in times.items()}, seconds)


def all_costs(experiment: Experiment, workspace: Workspace) -> dict[str, tuple[Cost, Cost]]:
    """The first revision, and the others, in each of the ways."""
    manifest = Manifest(workspace)
    first, *others = experiment.scheduled_steps()
    run = experiment.run_name("one")
    rounded = experiment.export.model_copy(update={"dtype": "bf16"})

    def both(one: Experiment) -> tuple[Cost, Cost]:
        return cost(one, workspace, [first]), cost(one, workspace, others)

    cost(experiment, workspace, [first])  # loads the libraries, and the disk's cache
    hub.withdraw_export(manifest, manifest.get("export", (run, f"checkpoint-{first}"), ""))
    measured = {"linked": both(experiment)}
    for step in (first, *others):
        hub.withdraw_export(manifest, manifest.get("export", (run, f"checkpoint-{step}"), ""))
    with without_links():
        measured["copied"] = both(experiment)
    measured["bf16"] = both(experiment.model_copy(update={"export": rounded}))
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
@click.option("--steps", default=4, help="How many steps of a run are exported.")
@click.option("--seq-len", default=1024, help="Tokens of a sequence; the probe has four.")
@click.option("--rounds", default=7, help="How often each contender writes.")
@click.option("--markdown", is_flag=True, help="Print tables for docs/benchmarks.md.")
def main(model: str, steps: int, seq_len: int, rounds: int, markdown: bool) -> None:
    """Measure what an export costs."""
    with tempfile.TemporaryDirectory(prefix="mistral-export-") as name:
        folder = Path(name)
        workspace = Workspace(folder / "workspace")
        experiment = record_steps(model, steps, seq_len, workspace)
        show_costs(all_costs(experiment, workspace), markdown)
        run = experiment.run_name("one")
        for step in experiment.scheduled_steps():
            probe = Manifest(workspace).get("export", (run, f"checkpoint-{step}"), "").facts["probe"]
            moved = abs(probe["exported"] / probe["recorded"] - 1)
            print(f"step {step}: rounding to bf16 changes the loss of {probe['recorded']:.4f} by {moved:.1e} of it")
        show_rates(rates(workspace.weights(run, 0) / tensorfiles.MODEL, folder, rounds), markdown)


def show_costs(measured: dict[str, tuple[Cost, Cost]], markdown: bool) -> None:
    """Print the median seconds of each part of a revision, of the first one of a run and of the others."""
    columns = [f"{way}, {which}" for way in WAYS for which in ("first", "others")]
    width = len(columns)
    line = "| {} |" + " {} |" * width if markdown else "{:32}" + " {:>14}" * width
    print(line.format("part of a revision, median s", *columns) + ("\n|-|" + "-:|" * width if markdown else ""))
    costs = [each for way in WAYS for each in measured[way]]
    for name in costs[0].parts:
        print(line.format(name, *(f"{each.parts[name]:.3f}" for each in costs)))
    print(line.format("CPU seconds, all", *(f"{each.cpu_seconds:.2f}" for each in costs)), flush=True)


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
