"""one task of an array -> the command that does it, in place of the process that submitit started."""

import os
import signal
import sys
from dataclasses import dataclass

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


@dataclass(frozen=True)
class Tasks:
    """What is pickled for submitit, the same for all tasks of an array: words of a command line, and their numbers."""

    arguments: tuple[str, ...]
    numbers: tuple[int, ...]  # by index in the array

    def __call__(self) -> None:
        """Become the command. submitit's signal handlers end here; signals wait until the command has its own."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        number = self.numbers[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]
        words = (*self.arguments, "--task", str(number))
        os.execv(sys.executable, [sys.executable, "-u", "-m", "pipeline.cli", *words])


def listen() -> None:
    """Take the signals that came since submitit started this process; the handlers are in place now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
