"""RANK, LOCAL_RANK, WORLD_SIZE, MASTER_* -> which rank this process is, its GPU, and the store where the ranks meet.

No signal is seen while torch waits, so the ranks wait for each other in a thread, and look for signals.
"""

import datetime
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import torch

from mistral.errors import EnvironmentProblem, LostRanks, Stopped

# How long ranks wait for one that hangs. Longer than what a rank does alone meanwhile: rank 0 hashes the newest state
# and writes the last one (GPT-2 XL's is 18 GB, so 20 MB/s suffice), each hashes the dataset.
TIMEOUT = datetime.timedelta(minutes=15)
SLICE_SECONDS = 0.2


@dataclass(frozen=True)
class Ranks:
    """Which rank of how many this process is."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> "Ranks":
        """RANK, LOCAL_RANK and WORLD_SIZE, as torchrun sets them; one rank without them."""
        if "RANK" not in os.environ:
            return cls()
        rank = int(os.environ["RANK"])
        return cls(rank, int(os.environ.get("LOCAL_RANK", rank)), int(os.environ["WORLD_SIZE"]))

    def device_index(self, visible: int) -> int:
        """The GPU of this rank among those that its process sees: Slurm may show a task its own only, or its node's.

        Raises:
            EnvironmentProblem: it sees too few of them.
        """
        if visible == 1:
            return 0
        if self.local_rank >= visible:
            raise EnvironmentProblem(
                f"rank {self.rank}: found {visible} GPUs (CUDA_VISIBLE_DEVICES is "
                f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}), expected at least {self.local_rank + 1}, one "
                "for each rank of this node\n  set stages.train.gpus_per_node to ranks_per_node in the cluster file"
            )
        return self.local_rank


def require_device(precision: str, needs_gpu: bool) -> None:
    """Refuse what this machine has no device for.

    Raises:
        EnvironmentProblem: GPUs are asked for and there are none, or fp16 is asked of a CPU.
    """
    if needs_gpu and not torch.cuda.is_available():
        raise EnvironmentProblem(
            "found no GPU, expected one for each rank because the cluster file sets stages.train.gpus_per_node\n"
            "  check nvidia-smi and the installed torch, or use a cluster file with gpus_per_node: 0"
        )
    if precision == "fp16" and not torch.cuda.is_available():
        raise EnvironmentProblem("training.precision: found fp16 on a CPU, expected fp32 or bf16 there; change it")


def store_of(ranks: Ranks, stop: Callable[[], bool]) -> dict[str, Any]:
    """The `store` of a process group; empty where torch finds the others by itself. Raises as `meet` does."""
    if ranks.world_size == 1:
        return {"store": torch._C._distributed_c10d.HashStore()}
    return {} if "TORCHELASTIC_USE_AGENT_STORE" in os.environ else {"store": meet(ranks, stop)}


def meet(ranks: Ranks, stop: Callable[[], bool]) -> Any:
    """The ranks' store, as soon as all of them are there.

    Rank 0 serves it at MASTER_PORT. In a Slurm step it listens there already, on the descriptor MASTER_LISTEN_FD.

    Args:
        ranks: how many there are, and which one this is.
        stop: whether a signal asked to leave.

    Raises:
        LostRanks: another rank does not appear.
        Stopped: `stop` said so.
    """
    place, world_size = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), ranks.world_size
    server: dict[str, Any] = {"is_master": ranks.rank == 0}
    if listening := os.environ.get("MASTER_LISTEN_FD"):
        server["master_listen_fd"] = int(listening)
    made: Future[Any] = Future()

    def make() -> None:
        try:
            made.set_result(torch._C._distributed_c10d.TCPStore(*place, world_size, timeout=TIMEOUT, **server))
        except RuntimeError as error:
            made.set_exception(error)

    threading.Thread(target=make, name="meeting", daemon=True).start()
    end = time.monotonic() + TIMEOUT.total_seconds()
    while not wait([made], SLICE_SECONDS).done and time.monotonic() < end:
        if stop():
            raise Stopped("stopped by a signal while the ranks waited for each other\n  run the same command to go on")
    if not made.done() or made.exception():
        reason = made.exception() if made.done() else "rank 0 does not answer"
        raise LostRanks(
            f"found that not all {world_size} ranks appeared within {TIMEOUT.total_seconds():.0f} s ({reason})\n"
            "  look at the logs of the others: mistral-pipeline logs --rank N"
        )
    return made.result()
