"""dataset -> trained runs: one task per seed, each in a process of its own, with its ranks beside it."""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mistral import sizes
from mistral.cohort import identity, refuse_changes, refuse_known_drift, refuse_other_data, refuse_other_schedule
from mistral.config import Experiment
from mistral.dataset import SEAL, evaluation_record, unit_names
from mistral.errors import ConfigError, DeadRank, EnvironmentProblem, Findings, LostRanks, MistralError, Stopped
from mistral.extension import steps_made
from mistral.lease import Owner
from mistral.manifest import Manifest, Record
from mistral.numbers import counted
from mistral.progress import Silent
from mistral.provenance import software
from mistral.workspace import step_name
from pipeline import local
from pipeline.context import Context

if TYPE_CHECKING:  # torch is imported where a run is trained, and nowhere else
    from mistral.run import Run
    from mistral.training import Ownership


@dataclass(frozen=True)
class TrainOptions:
    """What the command line says besides the experiment."""

    allow_drift: bool = False
    steal_lease: bool = False
    from_step_0: bool = False
    from_earlier_state: bool = False
    owner: Callable[[], Owner] = local.process_owner
    owner_is_alive: Callable[[Owner], bool | None] = local.is_alive


def refuse(context: Context, names: Sequence[str] = (), allow_drift: bool = False) -> None:
    """Refuse what cannot be trained, as far as that is known before any work; each command that trains begins with it.

    What the machine decides is looked at only if this one trains.

    Args:
        context: what to train, and where.
        names: the seeds; all of the experiment unless given.
        allow_drift: a seed may differ from the first run of the experiment.

    Raises:
        ConfigError: there is no such seed, the ranks do not divide the batch, the config or the schedule of a run that
            has begun changed, another experiment has a run of that name, or a seed would differ from its siblings.
        EnvironmentProblem: this machine lacks the GPU that the config asks for.
        ManifestError: the dataset is not the one that a run began with.
    """
    experiment, manifest, stage = context.experiment, context.manifest, context.cluster.stages.train
    experiment.training.accumulation_steps(stage.world_size())
    left = [seed for seed in experiment.choose_seeds(names) if not is_complete(experiment, seed, manifest)]
    known: dict[str, Any] = {
        "config": experiment.shared_sections(),
        "numerics": {"world_size": stage.world_size(), "threads": stage.threads_per_rank},
    }
    if seal := manifest.find("preprocess", (experiment.data.dataset_name(), SEAL)):
        known["data"] = seal.content
    here = context.cluster.executor == "local"
    if here:
        known["software"] = software()
    for run in map(experiment.run_name, left):
        begun = manifest.find("train", (run, "begin"))
        if begun and steps_made(manifest, run) is not None:
            refuse_other_data(begun, known.get("data", begun.inputs["dataset"]))
        elif not allow_drift:
            refuse_known_drift(manifest, experiment.name, run, known)
    if left and here and (experiment.training.precision == "fp16" or stage.gpus_per_node):
        from mistral.ranks import require_device

        require_device(experiment.training.precision, stage.gpus_per_node > 0)


def train(context: Context, names: Sequence[str] = (), allow_drift: bool = False) -> None:
    """Train seeds one after the other on this machine, each in a process of its own.

    Args:
        context: what to train, and where.
        names: the seeds; all of the experiment unless given.
        allow_drift: a seed may differ from the first run of the experiment.

    Raises:
        as `refuse`; Findings: some seeds failed; lists them.
        Stopped: stopped on a signal.
    """
    refuse(context, names, allow_drift)
    experiment, manifest = context.experiment, context.manifest
    seeds, failed = experiment.choose_seeds(names), []
    for seed in seeds:
        if is_complete(experiment, seed, manifest):
            context.progress.say(f"{experiment.run_name(seed)}: complete, nothing to train")
            continue
        dataset_record(experiment, manifest)
        task = ("--task", str(list(experiment.seeds).index(seed)), "--seed", seed)
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
    last, recorded = experiment.training.max_steps, set(manifest.names("train", (run, "weights")))
    if complete is None or complete.facts.get("steps", last) < last:
        return False
    return recorded.issuperset(map(step_name, experiment.scheduled_steps()))  # else train says what is lost


def describe_exit(code: int) -> str:
    """`exit code 3` or `killed by signal 9`."""
    return local.killed_by(-code) if code < 0 else f"exit code {code}"


def dataset_record(experiment: Experiment, manifest: Manifest) -> Record:
    """The seal of the experiment's dataset, whose evaluation sets are sealed as well.

    Raises:
        ManifestError: the dataset is not whole; counts what is there. Or an evaluation set is not.
    """
    dataset = experiment.data.dataset_name()
    units = len(unit_names(manifest, dataset))
    command = experiment.command("preprocess", manifest.workspace.root)
    advice = f"{counted(units, 'units')} of {dataset} recorded; run: {command}"
    seal = manifest.get("preprocess", (dataset, SEAL), advice)
    for name, one in experiment.evaluation_sets().items():
        evaluation_record(name, one, manifest)
    return seal


# --- one task, one rank -----------------------------------------------------------------------------------------


def train_task(context: Context, task: int, options: TrainOptions, expected: Sequence[str] = ()) -> None:
    """One task of the stage: the seed with that number in config order, trained here.

    With RANK in the environment this process is that rank; otherwise it starts the cluster file's ranks.

    Args:
        context: what to train, and where.
        task: the number of the seed.
        options: of the command line.
        expected: the name that the seed must have, where the experiment may have changed since the number was chosen.

    Raises:
        ConfigError: there is no such seed, or it has another name.
    """
    experiment, stage = context.experiment, context.cluster.stages.train
    seeds = list(experiment.seeds)
    if task >= len(seeds):
        raise ConfigError(f"--task: found {task}, expected 0 to {len(seeds) - 1}, one for each seed; see status")
    seed, run = seeds[task], experiment.run_name(seeds[task])
    if expected and list(expected) != [seed]:
        raise ConfigError(
            f"--task {task}: found the seed {seed} at this place of `seeds`, expected {', '.join(expected)}; the "
            "experiment changed: run the whole command again"
        )
    refuse(context, [seed], options.allow_drift)
    if is_complete(experiment, seed, context.manifest):
        context.progress.say(f"{run}: complete, nothing to train")
        return
    if "RANK" in os.environ or stage.world_size() == 1:
        be_rank(context, seed, dataset_record(experiment, context.manifest), options)
        return
    if stage.nodes > 1:
        raise EnvironmentProblem(
            f"{run}: found one process, expected {stage.world_size()} ranks on {stage.nodes} nodes, started by srun\n"
            "  leave --task out to have jobs submitted, or use slurm/train.sbatch"
        )
    command = local.command_line((*context.task_arguments, "--task", str(task), "--seed", seed))
    report_ranks(run, local.run_ranks(command, local.rank_environments(stage.ranks_per_node)))


def report_ranks(run: str, ends: Sequence[local.End]) -> None:
    """Turn the ends of the ranks into one outcome, which names those that ended first.

    Raises:
        Stopped: a rank stopped in order; the others may have lost the connection to it.
        MistralError, Findings: one failed with a message of its own.
        DeadRank: one was killed, or hung.
    """
    bad = {rank: end for rank, end in enumerate(ends) if end.code}
    if not bad:
        return
    victims = (LostRanks.exit_code, Stopped.exit_code)  # how ranks leave that miss another one, or are told to
    own = {rank: end for rank, end in bad.items() if not end.killed_here and end.code not in victims}
    if not own and Stopped.exit_code in [end.code for end in bad.values()]:
        if ends[0].code == Stopped.exit_code:
            raise Stopped  # rank 0 has said where
        raise Stopped(f"{run}: stopped with everything saved\n  run the same command to go on")
    hung = {rank: end for rank, end in bad.items() if end.killed_here}  # the others had lost them before
    listed = ", ".join(f"rank {rank} {describe_end(end)}" for rank, end in (own or hung or bad).items())
    codes = {end.code for end in own.values()}
    failed = MistralError if MistralError.exit_code in codes else Findings
    error = DeadRank if min(codes, default=-1) < 0 else failed
    raise error(f"{run}: {listed}; what the ranks said is above\n  run the same command to go on from the last state")


def describe_end(end: local.End) -> str:
    """`was killed by signal 9 (out of memory?)`, for one rank."""
    if end.killed_here:
        return "did not answer the others, and was ended"
    if end.code in (LostRanks.exit_code, Stopped.exit_code):
        return "lost the others" if end.code == LostRanks.exit_code else "stopped"
    return f"was {local.killed_by(-end.code)}" if end.code < 0 else f"failed with exit code {end.code}"


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
    try:
        with lost_connections_told(ranks.rank) if ranks.world_size > 1 else contextlib.nullcontext():
            device = engine.connect(ranks, training, stage.gpus_per_node > 0, stop)
            run = Run(context.experiment, seed, context.manifest, dataset, ranks, stage.threads_per_rank, device)
            require_memory(run, stage.ranks_per_node)
            run.check_dataset()
            if ranks.rank == 0:
                with owned(run, options) as ownership:
                    train_run(run, ownership, Hooks(stop, context.progress))
            else:
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
        reason = str(error).splitlines()[0][:200].encode("ascii", "ignore").decode()  # gloo's has emoji
        raise LostRanks(f"rank {rank} lost the other ranks: one died, or tells why ({reason})") from error


@contextlib.contextmanager
def owned(run: "Run", options: TrainOptions) -> Iterator["Ownership"]:
    """Own a run: its lease, and the record of its beginning.

    Raises:
        LeaseError: another process owns it.
        ConfigError: its frozen config changed, or it differs from its siblings.
    """
    from mistral import cohort, lease
    from mistral.resume import GoBack
    from mistral.run import write_config
    from mistral.training import Ownership

    experiment = run.experiment
    facts = cohort.begin_facts(experiment, run.seed, run.dataset.content, run.numerics())
    folder = run.manifest.workspace.run(run.name)
    run.manifest.workspace.refuse_links(folder)
    held = lease.acquire(folder, options.owner(), options.owner_is_alive, steal=options.steal_lease)
    try:
        begun = cohort.begin(run.manifest, run.name, facts, options.allow_drift)
        write_config(run)
        yield Ownership(held, begun, facts, GoBack(options.from_step_0, options.from_earlier_state))
    finally:
        held.release()
