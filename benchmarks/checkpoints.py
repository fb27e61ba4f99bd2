"""How long training stands still for a checkpoint, and what share of a run at Mistral's schedule that is.

Trains a model of GPT-2 small's size for a few short steps on this machine, with weights and states saved as in any run,
and times each step and each save where training waits for it; the files are written in the background meanwhile.

    .venv/bin/python benchmarks/checkpoints.py --steps 12 --markdown
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mistral import engine, training
from mistral.config import load_experiment
from mistral.loop import Loop
from mistral.manifest import Manifest
from mistral.progress import Silent
from mistral.ranks import Ranks
from mistral.run import Run
from mistral.training import Hooks
from mistral.workspace import Workspace
from pipeline.preprocess import preprocess
from pipeline.train import TrainOptions, owned

MISTRAL_STEPS, MISTRAL_WEIGHTS, STATE_EVERY = 400_000, 609, 1000

TIMED = (
    (Loop, "advance", "step"),
    (training, "probe", "probe loss"),
    (training, "save_weights", "weights, all"),
    (training, "save_state", "state, all"),
    (engine, "gather_weights", "weights, copied to host memory"),
)


def timed(times: dict[str, list[float]], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that notes how long each of its calls takes."""

    def call(*arguments: Any, **options: Any) -> Any:
        start = time.monotonic()
        result = function(*arguments, **options)
        times[name].append(time.monotonic() - start)
        return result

    return call


def measure(model: str, steps: int, seq_len: int, folder: Path) -> dict[str, list[float]]:
    """Train; returns the seconds of each step, of each save, and of the parts of a save."""
    overrides = [f"model={{{model}}}", f"training.seq_len={seq_len}", f"training.max_steps={steps}"]
    overrides += ["training.global_batch_size=1", "training.micro_batch_size=1"]
    overrides += [f"checkpoints={{schedule: [[4, {steps}]], resume_every_steps: 6}}", "evaluation.every_steps=1000000"]
    experiment = load_experiment("quickstart", tuple(overrides))
    workspace = Workspace(folder)
    preprocess(experiment, workspace, Silent())
    times: dict[str, list[float]] = defaultdict(list)
    for place, function, name in TIMED:
        setattr(place, function, timed(times, name, getattr(place, function)))
    engine.prepare_process(experiment.training, 1)
    device, manifest = engine.connect(Ranks(), experiment.training, needs_gpu=False), Manifest(workspace)
    dataset = manifest.get("preprocess", (experiment.data.dataset_name(), "dataset"), "")
    run = Run(experiment, "alias", manifest, dataset, Ranks(), 1, device)
    with owned(run, TrainOptions()) as ownership:
        training.train(run, ownership, Hooks(lambda: False, Silent()))
    engine.disconnect()
    return times


def shares(times: dict[str, list[float]]) -> dict[float, float]:
    """Seconds of a step -> share of training that saves take, at Mistral's schedule with a state every 1000 steps."""
    still = MISTRAL_WEIGHTS * statistics.median(times["weights, all"])
    still += MISTRAL_STEPS / STATE_EVERY * statistics.median(times["state, all"])
    return {step: still / (still + MISTRAL_STEPS * step) for step in (0.25, 0.5, 1.0, 2.0)}


@click.command()
@click.option("--model", default="n_layer: 12, n_head: 12, n_embd: 768, n_positions: 1024", help="Model section.")
@click.option("--steps", default=12, help="Steps that are trained.")
@click.option("--seq-len", default=64, help="Tokens of a sequence; short, so that steps are.")
@click.option("--markdown", is_flag=True, help="Print tables for docs/benchmarks.md.")
def main(model: str, steps: int, seq_len: int, markdown: bool) -> None:
    """Measure what checkpoints cost."""
    with tempfile.TemporaryDirectory(prefix="mistral-checkpoints-") as folder:
        times = measure(model, steps, seq_len, Path(folder))
    line = "| {} | {} | {:.3f} | {:.3f} |" if markdown else "{:32} {:>5} {:>9.3f} {:>9.3f}"
    print("| what | times | median s | longest s |\n|-|-:|-:|-:|" if markdown else "what, times, median s, longest s")
    for name, seconds in times.items():
        print(line.format(name, len(seconds), statistics.median(seconds), max(seconds)))
    print()
    for step, share in shares(times).items():
        print(f"steps of {step} s: saves take {share:.2%} of {MISTRAL_STEPS:,} steps with {MISTRAL_WEIGHTS} weights")


if __name__ == "__main__":
    main()
