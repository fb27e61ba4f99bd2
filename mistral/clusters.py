"""a cluster file: where the stages run, and with what resources; frozen models whose checks say what it may hold."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from mistral.section import Check, Count, Name, Section, Whole

LARGEST_AMOUNT = 1_000_000
LARGEST_NODE = 1024  # CPUs, GPUs, threads or processes
Amount = Annotated[Whole, Field(gt=0, le=LARGEST_AMOUNT)]
OfNode = Annotated[Whole, Field(gt=0, le=LARGEST_NODE)]


class ArrayStage(Section):
    """Resources of one task of preprocess or export."""

    tasks: Amount = 1
    """Into how many tasks the work is cut. [tasks]"""
    cpus_per_task: OfNode = 1
    """CPUs, and threads, of a task. [CPUs]"""
    memory_gigabytes: Amount = 8
    """Memory of a task. [GB]"""
    minutes: Amount = 60
    """Time limit of a task. [minutes]"""
    signal_lead_seconds: Amount = 60
    """How long before the time limit a task is told to stop. [seconds]"""
    array_width: Amount = 8
    """How many tasks may run at a time. [tasks]"""

    def checks(self) -> tuple[Check, ...]:
        """There is time to work before the signal."""
        return (self._early_signal,)

    def _early_signal(self) -> str | None:
        return early_signal(self.minutes, self.signal_lead_seconds)


class TrainStage(Section):
    """Resources of one training run."""

    nodes: Amount = 1
    """Nodes of a run. [nodes]"""
    ranks_per_node: OfNode = 1
    """Processes of a run on each node; on GPUs one for each. [ranks]"""
    gpus_per_node: Annotated[Count, Field(le=LARGEST_NODE)] = 0
    """GPUs of a run on each node; 0 trains on CPUs. [GPUs]"""
    cpus_per_rank: OfNode = 1
    """CPUs that are asked for a rank. [CPUs]"""
    threads_per_rank: OfNode = 1
    """Threads that a rank computes with; another number gives other bits. [threads]"""
    memory_gigabytes: Amount = 16
    """Memory of a run on each node. [GB]"""
    minutes: Amount = 1440
    """Time limit of a job. [minutes]"""
    signal_lead_seconds: Amount = 180
    """How long before the time limit a run is told to stop; covers a step, a save, and the 60 s by which Slurm's
    signals may be late. [seconds]"""
    array_width: Amount = 1
    """How many runs may be trained at a time. [runs]"""
    max_attempts_without_progress: Amount = 3
    """After so many attempts in a row that saved nothing a run is not started again. [attempts]"""
    chain_jobs: Amount = 4
    """Jobs of a run, one after another, where `requeue` is false. [jobs]"""

    def checks(self) -> tuple[Check, ...]:
        """There is time to train before the signal."""
        return (self._early_signal,)

    def _early_signal(self) -> str | None:
        return early_signal(self.minutes, self.signal_lead_seconds)

    def world_size(self) -> int:
        """Ranks of one run."""
        return self.nodes * self.ranks_per_node


def early_signal(minutes: int, lead_seconds: int) -> str | None:
    """What is wrong if a task would be told to stop before it has worked."""
    if lead_seconds < minutes * 60:
        return None
    return (
        f"found signal_lead_seconds {lead_seconds}, expected less than the {minutes} minutes of a task; "
        "lower it, or give the task more minutes"
    )


class Stages(Section):
    """Resources of the three stages."""

    preprocess: ArrayStage = ArrayStage()
    """Of a task of preprocess."""
    train: TrainStage = TrainStage()
    """Of a run of train."""
    export: ArrayStage = ArrayStage()
    """Of a task of export."""


# Options of sbatch that the cluster file's own keys, or the submission itself, decide.
OWN_OPTIONS = {
    *("account", "constraint", "exclude", "gres", "partition", "qos"),
    *("cpus-per-task", "gpus-per-node", "mem", "nodes", "ntasks", "ntasks-per-node", "signal", "time"),
    *("array", "comment", "dependency", "error", "job-name", "kill-on-invalid-dep", "open-mode", "output"),
    *("no-requeue", "requeue"),
}


class Cluster(Section):
    """Where to run."""

    name: Name
    """What the cluster is called; the same as its file."""
    executor: Literal["local", "slurm"]
    """Whether tasks run on this machine, or are submitted to Slurm."""
    account: str | None = None
    """Slurm's account, where the site bills one."""
    partition: str | None = None
    """Slurm's partition."""
    qos: str | None = None
    """Slurm's quality of service."""
    constraint: str | None = None
    """Features that a node must have, such as `a100&nvlink`."""
    exclude: str | None = None
    """Nodes that are not used, such as `gpu[017,042]`."""
    gres: str | None = None
    """GPUs of a node where they are asked for by kind, such as `gpu:a100:8`."""
    extra: Mapping[str, str | int | bool] = {}
    """Other options of sbatch."""
    requeue: bool = True
    """Whether the site lets a job be run again; where it does not, a run is a chain of jobs."""
    setup: tuple[str, ...] = ()
    """Shell lines before each task: modules, a virtual environment."""
    python: str | None = None
    """Shell words that start Python on a node, such as a container's; unless given, the Python that submits."""
    stages: Stages = Stages()
    """What a task of each stage may use."""

    def checks(self) -> tuple[Check, ...]:
        """`extra` is for what nothing else says."""
        return (self._said_elsewhere,)

    def jobs_in_chain(self, stage: str) -> int:
        """How many jobs do one task of a stage, one after another: 1 where a job can be run again."""
        return self.stages.train.chain_jobs if stage == "train" and not self.requeue else 1

    def _said_elsewhere(self) -> str | None:
        taken = [name for name in self.extra if name.lstrip("-").replace("_", "-") in OWN_OPTIONS]
        if not taken:
            return None
        return (
            f"extra: found {', '.join(taken)}, expected options that nothing else in this file decides; "
            "take them out, and set the cluster's own keys or those of its stages"
        )
