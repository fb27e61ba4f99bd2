"""Going on costs the same wherever a run stands: nothing is replayed. A sparse file stands for 8.8M sequences."""

import os
import time

import pytest
from safetensors.torch import load_file

from mistral import training
from mistral.checkpoints import read_state
from mistral.errors import Stopped
from mistral.manifest import FileEntry, make_record
from mistral.progress import Silent
from mistral.run import Run
from mistral.shards import TokenStream
from mistral.training import Hooks, open_checkpoints
from pipeline.train import TrainOptions, owned

SEQUENCES, SEQ_LEN, OFFSET = 8_800_000, 64, 2048
LONG_RUN = (
    f"model.n_positions={SEQ_LEN}",
    "training.max_steps=300010",
    "checkpoints.schedule=[[300010, 300010]]",
    "checkpoints.resume_every_steps=1000000",
    "evaluation.every_steps=1000000",
)


def of_openwebtexts_size(run: Run) -> Run:
    """The run on a dataset of one huge sparse shard, whose tokens are all 0."""
    manifest, (name, seal) = run.manifest, run.dataset.key
    tokens = SEQUENCES * SEQ_LEN
    shard = manifest.workspace.shard(name, "train", "00000")
    os.truncate(shard, OFFSET + 2 * tokens)
    unit = manifest.get("preprocess", (name, "00000"), "")
    facts = dict(unit.facts) | {"splits": dict(unit.facts["splits"])}
    facts["splits"]["train"] |= {"tokens": tokens, "offset": OFFSET}
    path = manifest.workspace.relative(shard)
    files = [FileEntry(path, shard.stat().st_size, "0" * 64), *(file for file in unit.files if file.path != path)]
    manifest.remove("preprocess", unit.key)
    unit = manifest.publish(make_record(unit.kind, unit.key, config=unit.config, inputs={}, files=files, facts=facts))
    sealed = dict(run.dataset.facts) | {"splits": dict(run.dataset.facts["splits"])}
    sealed["splits"]["train"] |= {"tokens": tokens, "units": [["00000", tokens]]}
    manifest.remove("preprocess", (name, seal))
    inputs = {"00000": unit.content}
    dataset = make_record(
        run.dataset.kind, run.dataset.key, config=run.dataset.config, inputs=inputs, files=[], facts=sealed
    )
    return Run(run.experiment, run.seed, manifest, manifest.publish(dataset), run.ranks, 1, run.device)


def forge_state(run: Run, step: int) -> None:
    """A state of a later step, with the tensors of the newest one."""
    with owned(run, TrainOptions()) as ownership, open_checkpoints(run, ownership) as store:
        newest = max(int(name[5:]) for name in run.manifest.names("train", (run.name, "state")))
        state = read_state(run.manifest.workspace.state(run.name, newest))
        tensors = load_file(state.folder / "state.safetensors")
        store.save_state(step, tensors, {"updates": step, "loss_scale": state.loss_scale}, numerics=run.numerics())
        store.wait()


def train_for(run: Run, steps: int) -> list[str]:
    """Train that many steps, save a state and stop; returns what was said."""
    calls, said = iter(range(1, steps + 1)), []

    class Listener(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    with owned(run, TrainOptions()) as ownership, pytest.raises(Stopped):
        training.train(run, ownership, Hooks(lambda: next(calls) == steps, Listener()))
    return said


def test_going_on_at_step_300_000_reads_and_takes_what_it_does_at_step_10(make_run, monkeypatch):
    run, rows = of_openwebtexts_size(make_run(*LONG_RUN)), []
    read = TokenStream.read
    monkeypatch.setattr(TokenStream, "read", lambda self, numbers: rows.append(len(numbers)) or read(self, numbers))
    assert len(run.streams["train"]) == SEQUENCES
    train_for(run, 10)
    costs = []
    for step in (10, 300_000):
        if step > 10:
            forge_state(run, step)
        rows.clear()
        start = time.monotonic()
        [said] = train_for(run, 1)
        assert said.endswith(f"going on from step {step}")
        costs.append((sum(rows), time.monotonic() - start))
    (few, early), (many, late) = costs
    assert few == many < 30, "sequences read to make one step and save its state"
    assert late < 3 * early + 1
