"""a command line -> what it cost: wall and CPU seconds and peak memory of its whole tree of processes."""

import ctypes
import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.05
ORPHAN_SECONDS = 10
PAGE = resource.getpagesize()


@dataclass(frozen=True)
class Cost:
    """Of one run, from before its first instruction to the end of its last process."""

    wall_seconds: float
    cpu_seconds: float  # user and system, of every process
    peak_bytes: int  # largest sum of resident memory; a page that two processes share counts twice
    output: str  # what it printed


def measure(command: Sequence[str], cores: int, environment: Mapping[str, str], log: Path) -> Cost:
    """Run a command in a fresh process on the first cores of this machine.

    Args:
        command: the program and its arguments.
        cores: how many of the cores that this process may use.
        environment: on top of this process's own.
        log: receives its standard error.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    adopt_orphans()
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    pinned = ["taskset", "--cpu-list", ",".join(map(str, chosen)), *command]
    before, start = children_seconds(), time.monotonic()
    with log.open("w") as errors, log.with_suffix(".out").open("w+") as printed:
        process = subprocess.Popen(pinned, stdout=printed, stderr=errors, env={**os.environ, **environment})
        peak = watch(process)
        wall = time.monotonic() - start
        reap_orphans()
        printed.seek(0)
        output = printed.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command), output, log.read_text()[-2000:])
    return Cost(wall, children_seconds() - before, peak, output)


def adopt_orphans() -> None:
    """Make processes whose parent ends this process's children, so that their CPU time is counted (prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children_seconds() -> float:
    """CPU seconds of all children that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def watch(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> int:
    """Wait for a process; returns the largest sum of resident bytes of its tree that was seen."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(resident_bytes(pid) for pid in tree(process.pid)))
        time.sleep(POLL_SECONDS)
    return peak


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    found, index = [root], 0
    while index < len(found):
        for listing in Path(f"/proc/{found[index]}/task").glob("*/children"):
            try:
                found += map(int, listing.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
        index += 1
    return found


def resident_bytes(pid: int) -> int:
    """0 for a process that has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (FileNotFoundError, ProcessLookupError):
        return 0


def reap_orphans() -> None:
    """Wait for what the command left behind (forkserver, resource tracker), which ends by itself."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            time.sleep(POLL_SECONDS)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
