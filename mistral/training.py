"""run -> checkpoints and metrics: the training of one run on one rank, from its last state to its last step."""

import math
import resource
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.distributed as dist

from mistral import engine
from mistral.checkpoints import Checkpoints, SavedState, read_state
from mistral.cohort import require_in_cohort
from mistral.config import Experiment
from mistral.drift import record_drift
from mistral.errors import NonFiniteLoss, Stopped
from mistral.evaluation import PREFIX_TOKENS, evaluate, measure, probe_losses, probe_sequences, sum_over_ranks
from mistral.lease import Lease
from mistral.loop import Loop, build_loop
from mistral.manifest import Record
from mistral.metrics import Metrics
from mistral.progress import Progress
from mistral.resume import GoBack, choose_state
from mistral.run import Run, complete
from mistral.schedule import learning_rate
from mistral.workspace import step_name


@dataclass(frozen=True)
class Ownership:
    """The right to write into a run, which rank 0 has: the lease, the record of the beginning, and the facts now.

    `go_back` says what the command line allows where the newest state cannot be used.
    """

    lease: Lease
    begun: Record
    facts: dict[str, Any]
    go_back: GoBack = field(default_factory=GoBack)


@dataclass(frozen=True)
class Hooks:
    """What the caller brings: how to stop, and where progress goes."""

    stop_requested: Callable[[], bool]
    progress: Progress


class Keeper:
    """What rank 0 keeps of a run: its metrics and checkpoints. Other ranks have none."""

    def __init__(self, run: Run, ownership: Ownership, step: int, drift: str | None) -> None:
        workspace = run.manifest.workspace
        self._stack = ExitStack()
        self.checkpoints = self._stack.enter_context(open_checkpoints(run, ownership, drift))
        tensorboard = workspace.run(run.name) / "tensorboard"
        self.metrics = self._stack.enter_context(Metrics(workspace.metrics(run.name), tensorboard, step))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def open_checkpoints(run: Run, ownership: Ownership, drift: str | None = None) -> Checkpoints:
    """The writer of a run's checkpoints."""
    return Checkpoints(
        run.manifest,
        run.name,
        ownership.begun.config,
        run.dataset.content,
        ownership.lease,
        drift=drift,
        deterministic=run.experiment.training.deterministic,
    )


def train(run: Run, ownership: Ownership | None, hooks: Hooks) -> None:
    """Train a run from its newest whole state, or from step 0, to its last step.

    Args:
        run: what to train; all ranks call this together.
        ownership: the right to write; rank 0 has it.
        hooks: the caller's side.

    Raises:
        Stopped: stop was requested; a state is saved.
        NonFiniteLoss: the loss is not a number; the last good state is kept.
        StorageError: the disk is full, or a file cannot be read; everything committed so far is whole.
        CheckpointError: the run has progress that it cannot go on from; says what to restore.
    """
    state = find_state(run, ownership, hooks.progress)
    loop = build_loop(run, state)
    if ownership is None:
        drive(loop, None, hooks)
        leave_together(run)
        return
    if state is None:
        require_in_cohort(run.manifest, ownership.begun)
    drift = note_drift(run, ownership, state, hooks.progress)
    with Keeper(run, ownership, loop.step, drift) as keeper:
        hooks.progress.start(f"train {run.name}", run.experiment.training.max_steps, "steps", loop.step)
        try:
            drive(loop, keeper, hooks)
        finally:
            hooks.progress.finish()
        keeper.checkpoints.wait()
        complete(run)
    leave_together(run)


def note_drift(run: Run, ownership: Ownership, state: SavedState | None, progress: Progress) -> str | None:
    """Record and tell that a run goes on with other software or hardware; the drift in force from here on, if any."""
    former, step = None, state.step if state else 0
    if state:
        record = run.manifest.get("train", (run.name, "state", step_name(step)), "run the same command again")
        former = record.inputs.get("drift")
    drift = record_drift(run.manifest, ownership.begun, ownership.facts, step, former)
    for change in drift.changes:
        told = f"goes on with other software or hardware ({change})"
        progress.say(f"{run.name}: {told}; recorded; bitwise reproducibility ends here")
    return drift.content


def leave_together(run: Run) -> None:
    """Wait for all ranks: one that leaves early breaks the connections of those that still work."""
    if run.ranks.world_size > 1:
        dist.barrier()


def find_state(run: Run, ownership: Ownership | None, progress: Progress) -> SavedState | None:
    """The state to go on from: rank 0 finds and checks it, all ranks read it."""
    choice: list[int | None] = [None]
    if ownership:
        choice = [choose_state(run, ownership.lease, ownership.go_back, progress)]
        open_checkpoints(run, ownership).remove_temporaries()
    if run.ranks.world_size > 1:
        dist.broadcast_object_list(choice, src=0, device=run.device)
    step = choice[0]
    return None if step is None else read_state(run.manifest.workspace.state(run.name, step))


def drive(loop: Loop, keeper: Keeper | None, hooks: Hooks) -> None:
    """Step until the last step, saving, logging and evaluating when they are due. All ranks together."""
    experiment = loop.run.experiment
    last, scheduled = experiment.training.max_steps, set(experiment.scheduled_steps())
    saved_at = time.monotonic()
    if loop.step == 0:
        save_weights(loop, keeper)
    while loop.step < last:
        loss, norm = loop.advance()
        due_by_time = keeper is not None and _minutes_since(saved_at) >= _resume_minutes(experiment)
        loss, stop, save = agree(loop, loss, hooks.stop_requested(), due_by_time)
        require_finite(loop, "loss", loss)
        if experiment.training.precision != "fp16":  # whose loss scale skips such steps
            require_finite(loop, "gradient norm", norm)
        if keeper:
            log_step(loop, keeper, loss, norm)
            hooks.progress.advance(1, loss=loss)
            keeper.checkpoints.raise_errors()
        if loop.step % experiment.evaluation.every_steps == 0 or loop.step == last:
            log_evaluation(loop, keeper)
        if loop.step in scheduled:
            save_weights(loop, keeper)
        if stop or save or loop.step % experiment.checkpoints.resume_every_steps == 0 or loop.step == last:
            save_state(loop, keeper)
            saved_at = time.monotonic()
        if stop and loop.step < last:
            stop_here(loop, keeper)


def agree(loop: Loop, loss: float, stop: bool, save: bool) -> tuple[float, bool, bool]:
    """Mean loss over the ranks, and whether any of them wants to stop or to save; the same answer on every rank."""
    world_size = loop.run.ranks.world_size
    values = torch.tensor([loss, float(stop), float(save)], dtype=torch.float64)
    if world_size > 1:
        values = sum_over_ranks(values, loop.engine.device)
    return float(values[0]) / world_size, bool(values[1]), bool(values[2])


def require_finite(loop: Loop, what: str, value: float) -> None:
    """Stop a run that has diverged before it saves or publishes anything of it; `value` is the same on every rank.

    Raises:
        NonFiniteLoss: says what, where, and what to change.
    """
    if not math.isfinite(value):
        raise NonFiniteLoss(
            f"{loop.run.name}: found {what} {value} at step {loop.step}, expected a finite number; nothing of this "
            "step was saved\n  lower training.learning_rate, lengthen warmup_steps, or use precision bf16 or fp32, "
            "under another experiment name"
        )


def _minutes_since(moment: float) -> float:
    return (time.monotonic() - moment) / 60


def _resume_minutes(experiment: Experiment) -> float:
    return experiment.checkpoints.resume_every_minutes or float("inf")


def log_step(loop: Loop, keeper: Keeper, loss: float, norm: float) -> None:
    """Write the metrics of this step, if it is one to log."""
    training = loop.run.experiment.training
    if loop.step % training.logging_steps and loop.step != training.max_steps:
        return
    memory: dict[str, float] = {"host_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    if loop.engine.device.type == "cuda":
        memory["device_gigabytes"] = torch.cuda.max_memory_allocated(loop.engine.device) / 1e9
    line = {
        "step": loop.step,
        "loss": loss,
        "learning_rate": learning_rate(training, loop.step - 1),
        "grad_norm": norm if norm < float("inf") else None,
        "tokens": loop.tokens(),
        "timing": loop.timing(),
        "memory": memory,
    }
    keeper.metrics.log(line)


def log_evaluation(loop: Loop, keeper: Keeper | None) -> None:
    """Measure the model on the validation split and the evaluation sets on all ranks; write it down on rank 0."""
    experiment, start = loop.run.experiment, time.monotonic()
    size, limit, results = experiment.training.micro_batch_size, experiment.evaluation.max_sequences, {}
    if loop.validation is not None:
        results["validation"] = evaluate(loop.engine, loop.validation, size, limit, loop.run.ranks)
        require_finite(loop, "validation loss", results["validation"]["loss"])
    for windows in loop.evaluation_sets:
        results[windows.name] = measure(loop.engine, windows, size, loop.run.ranks)
    for name, result in results.items():
        require_finite(loop, f"{name} loss", result["loss"])
    if keeper and results:
        keeper.metrics.log({"step": loop.step, "evaluation": results})
    loop.started += time.monotonic() - start  # training's throughput does not count it


def probe(loop: Loop) -> dict[str, Any]:
    """The probe: its loss, which must be finite in whatever is saved, and its sequences. All ranks together."""
    sequences = probe_sequences(loop.validation or loop.batches.stream)
    loss, prefix = probe_losses(engine.in_fp32(loop.engine), sequences)
    require_finite(loop, "probe loss", loss)
    tokens = min(PREFIX_TOKENS, len(sequences[0]))
    return {"loss": loss, "prefix": {"tokens": tokens, "loss": prefix}, "sequences": sequences}


def save_weights(loop: Loop, keeper: Keeper | None) -> None:
    """Gather the weights on all ranks, and write them on rank 0 in the background."""
    start = time.monotonic()
    probed = probe(loop)
    tensors = engine.gather_weights(loop.engine, keep=keeper is not None)
    if keeper:
        facts = {
            "step": loop.step,
            "tokens": loop.tokens(),
            "updates": engine.optimizer_steps(loop.engine),
            "probe": probed,
            "logging_steps": loop.run.experiment.training.logging_steps,  # which lines the metrics hold up to here
        }
        keeper.checkpoints.save_weights(
            loop.step, tensors, loop.config_json, facts, numerics=loop.run.numerics(), threads=loop.run.threads
        )
    loop.started += time.monotonic() - start


def save_state(loop: Loop, keeper: Keeper | None) -> None:
    """Gather parameters and moments on all ranks, and write them on rank 0; old states go when it is committed."""
    start = time.monotonic()
    probe(loop)
    weights = engine.gather_weights(loop.engine, keep=keeper is not None)
    moments = engine.gather_moments(loop.engine, keep=keeper is not None)
    numbers = {"updates": engine.optimizer_steps(loop.engine), "loss_scale": engine.loss_scale_state(loop.engine)}
    if keeper:
        keeper.metrics.make_durable()
        tensors = {f"param/{name}": tensor for name, tensor in weights.items()} | moments
        keeper.checkpoints.save_state(loop.step, tensors, numbers, numerics=loop.run.numerics())
        keeper.checkpoints.keep_newest_states(loop.run.experiment.checkpoints.keep_resumable)
    loop.started += time.monotonic() - start


def stop_here(loop: Loop, keeper: Keeper | None) -> None:
    """Leave in order: everything committed, then all ranks together.

    Raises:
        Stopped: always.
    """
    if keeper:
        keeper.checkpoints.wait()
    leave_together(loop.run)
    if keeper is None:
        raise Stopped  # rank 0 says where
    raise Stopped(f"{loop.run.name}: stopped at step {loop.step} with its state saved\n  run the same command to go on")
