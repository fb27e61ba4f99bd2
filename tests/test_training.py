"""A run goes on from its newest whole state, saves in the right order, and stops before it saves nonsense."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from attempts import Case, Fate, differing, metrics_of, outcome

from mistral import checkpoints, training
from mistral.errors import NonFiniteLoss, Stopped, StorageError
from mistral.loop import Loop
from mistral.manifest import Manifest
from mistral.metrics import Metrics, read_metrics
from mistral.progress import Silent
from mistral.run import Run
from mistral.training import Hooks
from mistral.workspace import step_name
from pipeline.train import TrainOptions, owned


class Listener(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def train(run: Run, stop: Callable[[], bool] = lambda: False) -> list[str]:
    """Train a run in this process; returns what was said."""
    listener = Listener()
    with owned(run, TrainOptions()) as ownership:
        training.train(run, ownership, Hooks(stop, listener))
    return listener.said


def stop_after(step: int) -> Callable[[], bool]:
    """A request to stop that comes during a step."""
    calls = iter(range(1, 100))
    return lambda: next(calls) >= step


def recorded(run: Run, kind: str) -> list[int]:
    return [int(name[5:]) for name in run.manifest.names("train", (run.name, kind))]


def steps_of(run: Run) -> list[int]:
    return [line["step"] for line in read_metrics(run.manifest.workspace.metrics(run.name)) if "loss" in line]


@pytest.fixture
def events(monkeypatch) -> Iterator[list[tuple[str, int]]]:
    """What becomes durable, in order: records as (kind, step), metrics as ("metrics", last step written)."""
    found: list[tuple[str, int]] = []
    publish, durable = Manifest.publish, Metrics.make_durable

    def publish_and_tell(self, record):
        found.append((record.kind, record.facts.get("step", -1)))
        return publish(self, record)

    def durable_and_tell(self):
        found.append(("metrics", max([line["step"] for line in read_metrics(self._path)], default=0)))
        durable(self)

    monkeypatch.setattr(Manifest, "publish", publish_and_tell)
    monkeypatch.setattr(Metrics, "make_durable", durable_and_tell)
    return found


def test_a_state_is_committed_after_all_weights_and_metrics_up_to_it(make_run, events):
    run = make_run()
    train(run)
    assert events[0] == ("train/begin", -1)
    assert events[-1] == ("train/complete", -1)
    for index, (kind, step) in enumerate(events):
        if kind == "train/state":
            before = events[:index]
            assert [s for k, s in before if k == "train/weights"] == [s for s in (0, 2, 4, 8, 12) if s <= step]
            assert ("metrics", step) in before
    assert [step for kind, step in events if kind == "train/state"] == [3, 6, 9, 12]
    assert recorded(run, "state") == [9, 12]
    assert steps_of(run) == list(range(1, 13))


def test_a_stop_saves_a_state_and_the_next_attempt_drops_what_came_after_it(make_run):
    run = make_run()
    with pytest.raises(Stopped, match=r"stopped at step 5 with its state saved\n.*same command"):
        train(run, stop_after(5))
    assert recorded(run, "state") == [3, 5]
    path = run.manifest.workspace.metrics(run.name)
    lines = path.read_text()
    later = json.dumps({"step": 6, "loss": 99.0}) + "\n" + json.dumps({"step": 7, "evaluation": {}}) + "\n"
    path.write_text(lines + later + '{"step": 8, "lo')  # of an attempt that was killed
    assert train(run) == ["alias-tiny-x21: going on from step 5"]
    assert path.read_text().startswith(lines)
    assert steps_of(run) == list(range(1, 13))
    assert 99.0 not in [line.get("loss") for line in read_metrics(path)]


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def hashes(run: Run, kind: str, step: int) -> list[str]:
    return [entry.sha256 for entry in run.manifest.get("train", (run.name, kind, step_name(step)), "").files]


def test_a_damaged_state_is_told_and_the_one_before_is_taken(make_run):
    run = make_run()
    with pytest.raises(Stopped):
        train(run, stop_after(7))
    flip_a_bit(run.manifest.workspace.state(run.name, 7) / "state.safetensors")
    said = train(run)
    assert (
        "set aside runs/alias-tiny-x21/state/step-00000007 as runs/alias-tiny-x21/set-aside/step-00000007-" in said[0]
    )
    assert "the state of step 7 is damaged: runs/alias-tiny-x21/state/step-00000007/state.safetensors: found" in said[0]
    assert said[1:] == ["alias-tiny-x21: going on from step 6"]
    assert steps_of(run) == list(range(1, 13))
    undisturbed = make_run("name=other")
    train(undisturbed)
    for kind in ("weights", "state"):
        assert hashes(run, kind, 12) == hashes(undisturbed, kind, 12)


def test_an_error_of_the_background_writer_stops_the_run_at_the_next_step(make_run, monkeypatch):
    run = make_run("checkpoints.resume_every_steps=12", "checkpoints.schedule=[[2, 2], [12, 12]]")
    save, advanced = checkpoints.save_file, []

    def refuse_step_two(tensors, path, **options):
        if "step-00000002" in str(path):
            raise OSError(28, "No space left on device")
        save(tensors, path, **options)

    advance = Loop.advance

    def advance_slowly(self: Loop) -> tuple[float, float]:
        advanced.append(self.step)
        time.sleep(0.2 if self.step == 2 else 0.0)  # the writer has failed by then
        return advance(self)

    monkeypatch.setattr(checkpoints, "save_file", refuse_step_two)
    monkeypatch.setattr(Loop, "advance", advance_slowly)
    with pytest.raises(StorageError, match="No space left on device"):
        train(run)
    assert advanced == [0, 1, 2]
    assert recorded(run, "weights") == [0]
    monkeypatch.setattr(checkpoints, "save_file", save)
    train(run)
    assert recorded(run, "weights") == [0, 2, 12]


def test_a_state_is_also_saved_when_enough_minutes_have_passed(make_run, monkeypatch):
    run = make_run("checkpoints.resume_every_steps=12", "checkpoints.resume_every_minutes=5")
    clock = iter(range(0, 100_000, 100))  # seconds: each look at the clock is 100 s later
    monkeypatch.setattr(training, "_minutes_since", lambda moment: (next(clock) % 400) / 60)
    monkeypatch.setattr(training.Checkpoints, "keep_newest_states", lambda self, count: None)
    train(run)
    assert recorded(run, "state") == [4, 8, 12]


@pytest.mark.parametrize("at_step", [0, 2])
def test_a_loss_that_is_not_finite_stops_the_run_before_anything_of_the_step_is_saved(make_run, monkeypatch, at_step):
    run = make_run("checkpoints.resume_every_steps=1", "checkpoints.schedule=[[1, 12]]")
    advance = Loop.advance

    def diverge(self: Loop) -> tuple[float, float]:
        loss, norm = advance(self)
        return (math.nan if self.step == at_step + 1 else loss), norm

    monkeypatch.setattr(Loop, "advance", diverge)
    with pytest.raises(
        NonFiniteLoss, match=rf"found loss nan at step {at_step + 1}, expected a finite number(.|\n)*lower"
    ):
        train(run)
    assert NonFiniteLoss.exit_code == 3
    assert recorded(run, "weights") == list(range(at_step + 1))
    assert recorded(run, "state") == list(range(1, at_step + 1))[-2:]
    assert steps_of(run) == list(range(1, at_step + 1))


def test_a_gradient_that_is_not_finite_stops_the_run_though_the_loss_is(make_run, monkeypatch):
    run = make_run("checkpoints.resume_every_steps=1", "checkpoints.schedule=[[1, 12]]")
    read = Loop._read

    def poison(self: Loop, micro_step: int) -> torch.Tensor:
        if (self.step, micro_step) == (3, 1):
            weight = self.engine.module.transformer.h[0].mlp.c_fc.weight
            weight.register_hook(lambda gradient: gradient * math.inf)
        return read(self, micro_step)

    monkeypatch.setattr(Loop, "_read", poison)
    with pytest.raises(NonFiniteLoss, match=r"found gradient norm (nan|inf) at step 4"):
        train(run)
    assert recorded(run, "weights") == [0, 1, 2, 3]
    assert recorded(run, "state") == [2, 3]


def test_weights_that_give_no_finite_loss_are_never_saved(make_run):
    """The loss of a step is that before its update: it says nothing of the weights after it."""
    run = make_run("training.learning_rate=1e38", "training.warmup_steps=0", "checkpoints.schedule=[[1, 12]]")
    with pytest.raises(NonFiniteLoss, match=r"found probe loss (nan|inf) at step 1, expected a finite number"):
        train(run)
    assert recorded(run, "weights") == [0]
    run = make_run("name=other", "training.learning_rate=1e38", "training.warmup_steps=0",
                   "checkpoints.resume_every_steps=1", "checkpoints.schedule=[[12, 12]]")  # fmt: skip
    with pytest.raises(NonFiniteLoss, match="at step 1"):
        train(run)
    assert recorded(run, "state") == []


def test_evaluations_are_logged_when_due_and_cost_no_throughput(make_run):
    run = make_run()
    train(run)
    lines = list(read_metrics(run.manifest.workspace.metrics(run.name)))
    evaluations = [line for line in lines if "evaluation" in line]
    assert [line["step"] for line in evaluations] == [4, 8, 12]
    for line in evaluations:
        result = line["evaluation"]["validation"]
        assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    assert all(line["learning_rate"] > 0 and line["grad_norm"] > 0 for line in lines if "loss" in line)


def test_a_run_that_has_all_but_its_end_gets_its_end(make_run):
    run = make_run()
    train(run)
    record = run.manifest.get("train", (run.name, "complete"), "")
    run.manifest.remove("train", (run.name, "complete"))
    assert train(run) == ["alias-tiny-x21: going on from step 12"]
    again = run.manifest.get("train", (run.name, "complete"), "")
    assert (again.content, again.facts) == (record.content, record.facts)


# --- attempts as processes --------------------------------------------------------------------------------------


@pytest.fixture
def case(packed: Path, tmp_path: Path) -> Case:
    shutil.copytree(packed / "workspace", tmp_path / "workspace")
    return Case(packed / "tiny.yaml", tmp_path / "workspace")


def snapshot(case: Case) -> set[Path]:
    return set(case.root.rglob("*"))


def test_a_damaged_dataset_is_refused_before_anything_is_written(case):
    before = snapshot(case)
    shard = next(case.root.glob("data/*/validation/*.h5"))
    flip_a_bit(shard)
    for ranks in (1, 2):
        said = dataclasses.replace(case, ranks=ranks).train(code=1)
        assert f"validation/{shard.name}: found sha256" in said
        assert "preprocess again" in said
    assert snapshot(case) == before


def test_a_second_process_on_one_run_is_refused_with_the_name_of_the_first(case):
    first = case.start(Fate(at_step=5, signal=signal.SIGSTOP))
    metrics = case.workspace.metrics(case.run_name)
    with contextlib.ExitStack() as stack:
        stack.callback(first.kill)
        end = time.monotonic() + 60
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 6:  # five steps and an evaluation
            assert time.monotonic() < end
            time.sleep(0.01)
        second = dataclasses.replace(case, told_as="second")
        said = second.train(code=1)
        pid = first.processes[0].pid
        assert f"alias-tiny-x21 is being trained already, by process {pid} on {os.uname().nodename}" in said
        assert "wait for it, or stop it first" in said
        os.kill(pid, signal.SIGCONT)
        assert first.codes() == [0]
    assert [line["step"] for line in metrics_of(case) if "loss" in line] == list(range(1, 13))


def test_a_full_disk_in_the_middle_of_a_state_is_told_and_the_next_attempt_goes_on(case, packed, tmp_path):
    shutil.copytree(packed / "workspace", tmp_path / "undisturbed")
    undisturbed = dataclasses.replace(case, root=tmp_path / "undisturbed")
    undisturbed.train()
    assert "stopped at step 5" in case.train(Fate(at_step=4, signal=signal.SIGTERM), code=75)
    size = (case.workspace.state(case.run_name, 5) / "state.safetensors").stat().st_size
    said = case.train(Fate(largest_file=size - 1), code=1)
    assert "StorageError: cannot write" in said
    assert "state/step-00000006" in said
    assert "run the same command again" in said
    assert case.manifest.names("train", (case.run_name, "state")) == ["step-00000003", "step-00000005"]
    assert "going on from step 5" in case.train()
    assert differing(outcome(undisturbed), outcome(case)) == []


def test_the_exit_code_of_a_diverged_run_is_three(case):
    diverging = dataclasses.replace(case, overrides=("training.learning_rate=1e38",))
    for ranks in (1, 2):
        said = dataclasses.replace(
            diverging, ranks=ranks, seed=("alias", "battlestar")[ranks - 1], allow_drift=True
        ).train(code=3)
        assert "NonFiniteLoss" in said
        assert "expected a finite number" in said
