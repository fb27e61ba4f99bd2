"""one task of an array -> the command that does it, in place of the process that submitit started."""

import os
import signal
import sys
from dataclasses import dataclass

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


@dataclass(frozen=True)
class Task:
    """What submitit pickles: words of a command line, and nothing else."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        """Become the command. submitit's signal handlers end here; signals wait until the command has its own."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        os.execv(sys.executable, [sys.executable, "-u", "-m", "pipeline.cli", *self.arguments])


def listen() -> None:
    """Take the signals that came since submitit started this process; the handlers are in place now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
