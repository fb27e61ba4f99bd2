"""What an exported revision costs, part by part, and how fast its tensors are written beside cp.

Trains a model of GPT-2 small's size for a few steps on this machine, and exports each step, with step 0, three times:
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
from checkpoints import timed, train_here

from mistral import hub, tensorfiles
from mistral.config import Experiment
from mistral.files import fsync_file, fsync_folder, sha256_of
from mistral.manifest import Manifest
from mistral.progress import Silent
from mistral.workspace import Workspace
from pipeline.export import export

TIMED = (
    ("require_checkpoint", "checkpoint hashed"),
    ("place_tensors", "tensors linked or written"),
    ("check_probe", "parity: loaded, probe computed"),
    ("publish_folder", "flushed, named, recorded"),
    ("export_checkpoint", "all"),
)
WAYS = ("linked", "copied", "bf16")


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
    """Export every step; returns the seconds of each part of each revision, and CPU seconds of a revision."""
    times: dict[str, list[float]] = defaultdict(list)
    functions = {function: getattr(hub, function) for function, _ in TIMED}
    for function, name in TIMED:
        setattr(hub, function, timed(times, name, functions[function]))
    start = time.process_time()
    try:
        export(experiment, workspace, Silent(), seeds=["alias"])
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
    for name in manifest.names("export", (experiment.run_name("alias"),)):
        hub.withdraw_export(manifest, manifest.get("export", (experiment.run_name("alias"), name), ""))
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
@click.option("--revisions", default=4, help="Steps that are trained and exported, step 0 among them.")
@click.option("--seq-len", default=1024, help="Tokens of a sequence; the probe has four.")
@click.option("--rounds", default=7, help="How often each contender writes.")
@click.option("--markdown", is_flag=True, help="Print tables for docs/benchmarks.md.")
def main(model: str, revisions: int, seq_len: int, rounds: int, markdown: bool) -> None:
    """Measure what an export costs."""
    with tempfile.TemporaryDirectory(prefix="mistral-export-") as name:
        folder = Path(name)
        experiment, workspace = train_here(model, revisions - 1, seq_len, 1, folder / "workspace")
        measured = all_parts(experiment, workspace)
        run, facts = experiment.run_name("alias"), []
        for key in Manifest(workspace).names("export", (run,)):
            facts.append(Manifest(workspace).get("export", (run, key), "").facts)
        written = rates(workspace.weights(run, 0) / tensorfiles.MODEL, folder, rounds)
    show(measured, written, markdown)
    for fact in facts:
        probe = fact["probe"]
        moved = abs(probe["exported"] / probe["recorded"] - 1)
        print(f"step {fact['step']}: rounding to bf16 changes the probe loss of {probe['recorded']:.4f} by {moved:.1e}")


def show(
    measured: dict[str, tuple[dict[str, list[float]], float]], written: dict[str, list[float]], markdown: bool
) -> None:
    """Print both tables: medians of seconds, and of MB/s beside cp."""
    line = "| {} | {} | {} | {} |" if markdown else "{:32} {:>9} {:>9} {:>9}"
    print(line.format("part of a revision, median s", *WAYS) + ("\n|-|-:|-:|-:|" if markdown else ""))
    for name in measured["linked"][0]:
        print(line.format(name, *(f"{statistics.median(measured[way][0][name]):.3f}" for way in WAYS)))
    print(line.format("CPU seconds, all", *(f"{measured[way][1]:.2f}" for way in WAYS)))
    print("\n" + line.format("tensors written, median MB/s", "exporter", "cp", "ratio") + ("\n|-|-:|-:|-:|" * markdown))
    for ours, other in (("copied", "cp"), ("bf16", "cp of the bf16 file")):
        own, peer = statistics.median(written[ours]), statistics.median(written[other])
        print(line.format(ours, f"{own:.0f}", f"{peer:.0f}", f"{own / peer:.2f}"))
    print()


if __name__ == "__main__":
    main()
