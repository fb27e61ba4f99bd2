"""dataset -> trained runs: one task per seed, each in a process of its own, with its ranks beside it."""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mistral import sizes
from mistral.cohort import identity, refuse_changes, refuse_other_schedule
from mistral.config import Experiment
from mistral.dataset import evaluation_record
from mistral.errors import ConfigError, EnvironmentProblem, Findings, LostRanks, MistralError, Stopped
from mistral.extension import steps_made
from mistral.lease import Owner
from mistral.manifest import Manifest, Record
from mistral.progress import Silent
from pipeline import local
from pipeline.context import Context
from pipeline.numbers import counted

if TYPE_CHECKING:  # torch is imported where a run is trained, and nowhere else
    from mistral.run import Run
    from mistral.training import Ownership


@dataclass(frozen=True)
class TrainOptions:
    """What the command line says besides the experiment."""

    allow_drift: bool = False
    steal_lease: bool = False
    owner: Callable[[], Owner] = local.process_owner
    owner_is_alive: Callable[[Owner], bool | None] = local.is_alive


def train(context: Context, names: Sequence[str] = ()) -> None:
    """Train seeds one after the other on this machine, each in a process of its own.

    Args:
        context: what to train, and where.
        names: the seeds; all of the experiment unless given.

    Raises:
        Findings: some seeds failed; lists them.
        Stopped: stopped on a signal.
    """
    experiment, manifest = context.experiment, context.manifest
    experiment.training.accumulation_steps(context.cluster.stages.train.world_size())
    seeds, failed = experiment.choose_seeds(names), []
    for seed in seeds:
        if is_complete(experiment, seed, manifest):
            context.progress.say(f"{experiment.run_name(seed)}: complete, nothing to train")
            continue
        dataset_record(experiment, manifest)
        task = ("--task", str(list(experiment.seeds).index(seed)))
        [code] = local.run_together(local.command_line((*context.task_arguments, *task)), [{}])
        if code == Stopped.exit_code:
            raise Stopped  # the process that trained has said where
        if code == MistralError.exit_code:
            raise MistralError(f"{experiment.run_name(seed)}: not trained; the reason is above")
        if code:
            failed.append(f"{seed} ({describe_exit(code)})")
    if failed:
        raise Findings(
            f"found that {len(failed)} of {len(seeds)} seeds failed: {', '.join(failed)}; the reasons are above\n"
            "  run the same command to go on from their last states"
        )


def is_complete(experiment: Experiment, seed: str, manifest: Manifest) -> bool:
    """Whether a run has nothing left to do.

    Raises:
        ConfigError: its frozen config or its schedule changed, or another experiment has a run of that name.
    """
    run = experiment.run_name(seed)
    begun = manifest.find("train", (run, "begin"))
    if begun is not None and steps_made(manifest, run) is not None:
        refuse_changes(manifest, begun, identity(experiment, seed))
        refuse_other_schedule(manifest, begun, experiment.scheduled_steps())
    complete = manifest.find("train", (run, "complete"))
    last = experiment.training.max_steps
    return complete is not None and complete.facts.get("steps", last) >= last


def describe_exit(code: int) -> str:
    """`exit code 3` or `killed by signal 9`."""
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def dataset_record(experiment: Experiment, manifest: Manifest) -> Record:
    """The seal of the experiment's dataset, whose evaluation sets are sealed as well.

    Raises:
        ManifestError: the dataset is not whole; counts what is there. Or an evaluation set is not.
    """
    dataset = experiment.data.dataset_name()
    units = len(manifest.names("preprocess", (dataset,)))
    command = experiment.command("preprocess", manifest.workspace.root)
    advice = f"{counted(units, 'units')} of {dataset} recorded; run: {command}"
    seal = manifest.get("preprocess", (dataset, "dataset"), advice)
    for name, one in experiment.evaluation_sets().items():
        evaluation_record(name, one, manifest)
    return seal


# --- one task, one rank -----------------------------------------------------------------------------------------


def train_task(context: Context, task: int, options: TrainOptions) -> None:
    """One task of the stage: the seed with that number in config order, trained here.

    With RANK in the environment this process is that rank; otherwise it starts the cluster file's ranks.
    """
    experiment, stage = context.experiment, context.cluster.stages.train
    seeds = list(experiment.seeds)
    if task >= len(seeds):
        raise ConfigError(f"--task: found {task}, expected 0 to {len(seeds) - 1}, one for each seed; see status")
    seed, run = seeds[task], experiment.run_name(seeds[task])
    if is_complete(experiment, seed, context.manifest):
        context.progress.say(f"{run}: complete, nothing to train")
        return
    experiment.training.accumulation_steps(stage.world_size())
    if "RANK" in os.environ or stage.world_size() == 1:
        be_rank(context, seed, dataset_record(experiment, context.manifest), options)
        return
    if stage.nodes > 1:
        raise EnvironmentProblem(
            f"{run}: found one process, expected {stage.world_size()} ranks on {stage.nodes} nodes, started by srun\n"
            "  leave --task out to have jobs submitted, or use slurm/train.sbatch"
        )
    command = local.command_line((*context.task_arguments, "--task", str(task)))
    report_ranks(run, local.run_together(command, local.rank_environments(stage.ranks_per_node)))


def report_ranks(run: str, codes: list[int]) -> None:
    """Turn the exit codes of the ranks into one outcome.

    Raises:
        Stopped: the ranks stopped in order.
        MistralError: one failed with a message of its own.
        Findings: one died.
    """
    if not any(codes):
        return
    if all(code == Stopped.exit_code for code in codes):
        raise Stopped  # rank 0 has said where
    listed = ", ".join(f"rank {rank} {describe_exit(code)}" for rank, code in enumerate(codes) if code)
    killed = any(code < 0 for code in codes)  # the others then fail for want of it
    error = MistralError if MistralError.exit_code in codes and not killed else Findings
    raise error(f"{run}: {listed}; the reason is above\n  run the same command to go on from the last state")


def be_rank(context: Context, seed: str, dataset: Record, options: TrainOptions) -> None:
    """Be one rank of a run, from connecting to the last step."""
    stop = local.StopFlag()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by their former names.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    from mistral import engine
    from mistral.ranks import Ranks
    from mistral.run import Run
    from mistral.training import Hooks
    from mistral.training import train as train_run

    training, stage = context.experiment.training, context.cluster.stages.train
    ranks = Ranks.from_environment()
    training.accumulation_steps(ranks.world_size)  # refused before anything is recorded
    engine.prepare_process(training, stage.threads_per_rank)
    device = engine.connect(ranks, training, stage.gpus_per_node > 0, stop)
    run = Run(context.experiment, seed, context.manifest, dataset, ranks, stage.threads_per_rank, device)
    try:
        require_memory(run, stage.ranks_per_node)
        run.check_dataset()
        if ranks.rank == 0:
            with owned(run, options) as ownership:
                train_run(run, ownership, Hooks(stop, context.progress))
        else:
            with lost_connections_told(ranks.rank):
                train_run(run, None, Hooks(stop, Silent()))
    finally:
        stop.restore()
        engine.disconnect()


def require_memory(run: "Run", ranks_here: int) -> None:
    """Refuse a model that cannot fit, before anything of it is built or recorded.

    Args:
        run: this rank's.
        ranks_here: ranks that share the memory of this machine.

    Raises:
        ConfigError: the parameters alone, with gradients and moments, need more than there is.
    """
    import torch

    experiment, on_gpu = run.experiment, run.device.type == "cuda"
    parameters = sizes.parameters_of(experiment.model, run.dataset.facts["vocabulary_size"])
    needed = sizes.least_bytes(parameters, experiment.training, run.ranks.world_size) * (1 if on_gpu else ranks_here)
    there = torch.cuda.get_device_properties(run.device).total_memory if on_gpu else sizes.host_bytes()
    if needed > there:
        place = "the GPU" if on_gpu else "this machine"
        raise ConfigError(
            f"model: found {sizes.count(parameters, 'parameters')}, which need {sizes.memory(needed)} of memory or "
            f"more in training, expected at most {sizes.memory(there)}, all that {place} has\n"
            "  lower n_layer, n_embd or n_positions, use more ranks with training.zero_stage 3, or a larger machine"
        )


@contextlib.contextmanager
def lost_connections_told(rank: int) -> Iterator[None]:
    """Keep the traces of a torn connection from hiding the message of the rank that tore it.

    Raises:
        LostRanks: the connection to the other ranks is torn.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in ("onnection", "gloo", "NCCL")):
            raise
        reason = str(error).splitlines()[0][:200]
        raise LostRanks(f"rank {rank} lost the other ranks: one died, or tells why ({reason})") from error


@contextlib.contextmanager
def owned(run: "Run", options: TrainOptions) -> Iterator["Ownership"]:
    """Own a run: its lease, and the record of its beginning.

    Raises:
        LeaseError: another process owns it.
        ConfigError: its frozen config changed, or it differs from its siblings.
    """
    from mistral import cohort, lease
    from mistral.run import write_config
    from mistral.training import Ownership

    experiment = run.experiment
    siblings = [experiment.run_name(seed) for seed in experiment.seeds if seed != run.seed]
    facts = cohort.begin_facts(experiment, run.seed, run.dataset.content, run.numerics())
    folder = run.manifest.workspace.run(run.name)
    held = lease.acquire(folder, options.owner(), options.owner_is_alive, steal=options.steal_lease)
    try:
        begun = cohort.begin(run.manifest, run.name, facts, siblings, options.allow_drift)
        write_config(run)
        yield Ownership(held, begun, facts)
    finally:
        held.release()
