"""a cluster file: where the stages run, and with what resources; frozen models whose checks say what it may hold."""

from collections.abc import Mapping
from typing import Literal

from mistral.section import Check, Count, Name, Positive, Section


class ArrayStage(Section):
    """Resources of one task of preprocess or export."""

    tasks: Positive = 1
    cpus_per_task: Positive = 1
    memory_gigabytes: Positive = 8
    minutes: Positive = 60
    signal_lead_seconds: Positive = 60  # how long before the time limit a task is told to stop
    array_width: Positive = 8  # tasks that may run at a time

    def checks(self) -> tuple[Check, ...]:
        """There is time to work before the signal."""
        return (self._early_signal,)

    def _early_signal(self) -> str | None:
        return early_signal(self.minutes, self.signal_lead_seconds)


class TrainStage(Section):
    """Resources of one training run."""

    nodes: Positive = 1
    ranks_per_node: Positive = 1
    gpus_per_node: Count = 0
    cpus_per_rank: Positive = 1
    threads_per_rank: Positive = 1
    memory_gigabytes: Positive = 16
    minutes: Positive = 1440
    signal_lead_seconds: Positive = 180  # covers a step, a save, and the 60 s by which Slurm's signals may be late
    array_width: Positive = 1
    max_attempts_without_progress: Positive = 3
    chain_jobs: Positive = 4  # jobs of a run, one after another, where `requeue` is false

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
    train: TrainStage = TrainStage()
    export: ArrayStage = ArrayStage()


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
    executor: Literal["local", "slurm"]
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None  # GPUs of a node where they are asked for by kind: gpu:a100:8
    extra: Mapping[str, str | int | bool] = {}  # other sbatch options
    requeue: bool = True  # whether the site lets a job be run again; else a run is a chain of jobs
    setup: tuple[str, ...] = ()  # shell lines before each task: modules, a virtual environment
    python: str | None = None  # the shell words that start Python on a node, such as a container's; else this very one
    stages: Stages = Stages()

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
