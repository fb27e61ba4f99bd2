"""A real Slurm for tests: that of slurm/devcluster.sh, with nodes that can be killed; what is left out is said."""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "slurm" / "devcluster.sh"
DAEMONS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "srun")


@dataclass(frozen=True)
class DevCluster:
    """A running cluster; its settings are in the environment of this process."""

    environment: dict[str, str]

    def call(self, *arguments: str) -> None:
        """Run devcluster.sh."""
        done = subprocess.run(
            [SCRIPT, *arguments], env=self.environment, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == 0, f"devcluster.sh {arguments}: {done.stdout}{done.stderr}"


def ask(*command: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def wait_until(condition: Callable[[], object], what: str, seconds: float = 240) -> None:
    """Wait for something to happen."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)


def free_slot() -> tuple[int, TextIO]:
    """A number that no other session of tests on this machine has: each has a cluster of its own."""
    for number in range(1, 20):
        file = Path(f"/tmp/mistral-devcluster-{number}.lock").open("a", encoding="utf-8")  # noqa: SIM115  held for the session
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
        else:
            return number, file
    raise RuntimeError("found 19 sessions of tests with clusters, expected a free one")


def why_left_out() -> str:
    """Why there can be no cluster here; empty where there can, or where it must (CI)."""
    if os.environ.get("CI") == "true":
        return ""
    if os.geteuid() != 0:
        return "tests on a real Slurm are left out: they need root; run them with: sudo make test-slurm"
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    return f"tests on a real Slurm are left out: no {', '.join(missing)}; run: make test-slurm" if missing else ""


@pytest.fixture(scope="session")
def cluster() -> Iterator[DevCluster]:
    """Two nodes of 4 CPUs. In CI, where it cannot be started, the tests fail."""
    if reason := why_left_out():
        pytest.skip(reason)
    number, lock = free_slot()
    folder = Path(f"/tmp/mistral-devcluster-{number}")
    settings = {"DIR": str(folder), "NAME": f"test{number}", "NET": f"10.77.{number}", "PORT": str(6817 + 10 * number)}
    environment = {**os.environ, **{f"DEVCLUSTER_{name}": value for name, value in settings.items()}}
    running = DevCluster(environment)
    running.call("stop")  # what a session that was killed left
    shutil.rmtree(folder, ignore_errors=True)
    former = os.environ.get("SLURM_CONF")
    try:
        running.call("start")
        os.environ["SLURM_CONF"] = str(folder / "etc" / "slurm.conf")
        yield running
    finally:
        running.call("stop")
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("SLURM_CONF") if former is None else os.environ.update(SLURM_CONF=former)
        lock.close()
