"""SLURM_* of a step with several tasks -> RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, as torchrun has them.

Rank 0 listens on the first free port of a row that follows from job, task, step and restart, and writes down where, in
a file of the shared workspace; the others wait for that file. torch takes over the very socket that was found free, so
nobody can take the port in between.
"""

import errno
import hashlib
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from mistral.errors import EnvironmentProblem
from mistral.files import make_folder, write_bytes

FIRST_PORT, PORTS, TRIES = 12_000, 20_000, 64  # below the ports that Linux gives to outgoing connections
WAIT_SECONDS = 600.0  # a node whose file system is slow may start minutes after the others
STEP = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID", "SLURM_STEP_LAUNCHER_PORT")


def is_one_of_several(environment: Mapping[str, str]) -> bool:
    """Whether this process is one rank of a Slurm step (SLURM_NTASKS is set in the batch shell as well)."""
    return "RANK" not in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def join(environment: Mapping[str, str], folder: Path, wait_seconds: float = WAIT_SECONDS) -> dict[str, str]:
    """Meet the other ranks of this step.

    Args:
        environment: what Slurm set.
        folder: a folder that all nodes see.
        wait_seconds: how long to wait for rank 0.

    Returns:
        variables to add to the environment; of rank 0 also the descriptor of its listening socket.

    Raises:
        EnvironmentProblem: no port is free, or rank 0 did not appear.
    """
    rank, step = environment["SLURM_PROCID"], [environment.get(name, "0") for name in STEP]
    path = folder / f"rendezvous-{'-'.join(step)}"
    shared = {
        "RANK": rank,
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "MASTER_LISTEN_FD": "",
    }
    if rank == "0":
        address = environment.get("SLURMD_NODENAME") or socket.gethostname()
        listener = listen("-".join(step[:3]), socket.getaddrinfo(address, None)[0][0])
        port = listener.getsockname()[1]
        make_folder(folder)
        write_bytes(path, f"{address} {port}\n".encode())
        shared["MASTER_LISTEN_FD"] = str(listener.detach())
    else:
        address, port = wait_for(path, wait_seconds).split()
    return {**shared, "MASTER_ADDR": address, "MASTER_PORT": str(port)}


def leave(environment: Mapping[str, str], folder: Path) -> None:
    """Remove the files of a job's meetings."""
    for path in folder.glob(f"rendezvous-{environment['SLURM_JOB_ID']}-*"):
        path.unlink(missing_ok=True)


def ports(key: str) -> Iterator[int]:
    """A row of ports that follows from `key`, each once."""
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return (FIRST_PORT + (start + 7919 * turn) % PORTS for turn in range(TRIES))  # 7919 and PORTS share no factor


def listen(key: str, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """A socket that listens on the first free port of the row of `key`.

    Raises:
        EnvironmentProblem: all of them are taken.
    """
    for port in ports(key):
        listener = socket.socket(family)
        try:
            listener.bind(("", port))
            listener.listen(1024)
        except OSError as error:
            listener.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
        else:
            return listener
    raise EnvironmentProblem(
        f"{socket.gethostname()}: found {TRIES} ports between {FIRST_PORT} and {FIRST_PORT + PORTS} taken, expected a "
        "free one\n  look at what listens there (ss -ltnp), or run on another node"
    )


def wait_for(path: Path, seconds: float) -> str:
    """The text of a file that another node writes, as soon as it is seen here.

    Raises:
        EnvironmentProblem: it does not appear.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            next(path.parent.iterdir(), None)  # makes an NFS client ask its server again
            return path.read_text(encoding="ascii")
        except FileNotFoundError:
            time.sleep(0.1)
    raise EnvironmentProblem(
        f"{path}: found no such file within {seconds:.0f} s, expected rank 0 to write its address there\n"
        "  look at the log of rank 0; check that all nodes see the workspace"
    )
