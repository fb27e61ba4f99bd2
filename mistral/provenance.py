"""this process -> who made a file: versions, git commit, host, hardware, Slurm ids. Information only."""

import functools
import importlib.metadata
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

import mistral

# The packages whose versions decide the bits of a run.
DECISIVE = ("torch", "transformers", "deepspeed", "numpy", "safetensors", "tokenizers")
SLURM = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT")


@functools.cache
def software() -> dict[str, str]:
    """Versions of the packages that decide the bits of a run (the git commit is not among them)."""
    versions = {"python": platform.python_version(), "mistral-pipeline": mistral.__version__}
    for package in DECISIVE:
        versions[package] = importlib.metadata.version(package)
    return versions


@functools.cache
def hardware() -> str:
    """Model name of the processor (training adds the accelerator's)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, with `+changes` if it was edited; None outside git."""
    folder = Path(mistral.__file__).parent
    # A package that is installed inside somebody's own repository is not part of it.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git(folder, "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def made_by(**more: Any) -> dict[str, Any]:
    """The `made_by` part of a record."""
    slurm = {name.lower(): os.environ[name] for name in SLURM if name in os.environ}
    facts: dict[str, Any] = {
        "software": software(),
        "git_commit": git_commit(),
        "host": socket.gethostname(),
        "hardware": hardware(),
        **slurm,
    }
    return {**facts, **more}
