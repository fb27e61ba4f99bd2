"""what srun said of its tasks -> which rank ended first, how, and on which node.

srun prints a line when tasks end badly, in the order in which they do: `srun: error: n2: task 1: Killed`. Its stderr is
that of the batch script, which Slurm connects to the job's log file; the last command of the script can read it there.
"""

import os
import re
import signal
import stat
from dataclasses import dataclass
from pathlib import Path

from mistral.errors import LostRanks, Stopped
from pipeline.local import killed_by

STDERR = 2
TAIL_BYTES = 256 * 1024
LINE = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): (.+?)(?: \(core dumped\))?$", flags=re.M)
EXIT = re.compile(r"Exited with exit code (\d+)$")
VERDICT = re.compile(r"^\w+: Slurm job \S+: ", flags=re.M)  # what `again` said at the end of an earlier attempt
SIGNALS = {signal.strsignal(number): int(number) for number in signal.valid_signals()}
SIGNALS["Out Of Memory"] = int(signal.SIGKILL)


@dataclass(frozen=True)
class Culprit:
    """The first rank, or the first ones of a node, that ended badly by themselves."""

    ranks: str  # `1`, or `4-7`
    node: str
    signal: int  # 0 for one that was not killed
    code: int  # its exit code; 0 for one that was killed

    def words(self, hung: bool) -> str:
        """For people; srun kills a rank that hung, once the others have given up on it."""
        one = self.ranks.isdecimal()
        who, was = f"rank {self.ranks}" if one else f"ranks {self.ranks}", "was" if one else "were"
        if not self.signal:
            return f"{who} on node {self.node} left with exit code {self.code} and gave no reason"
        if hung:
            return f"{who} on node {self.node} did not answer the others, and {was} ended by signal {self.signal}"
        return f"{who} {was} {killed_by(self.signal)} on node {self.node}"


def read_log() -> str:
    """The end of this job's log, where its batch script writes into a file; else empty."""
    status = os.fstat(STDERR)
    if not stat.S_ISREG(status.st_mode):
        return ""
    with Path(f"/proc/self/fd/{STDERR}").open("rb") as file:  # opened anew, as the descriptor is for writing
        file.seek(max(0, status.st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")


def find(log: str) -> Culprit | None:
    """Who ended first in the last attempt of a log; None if srun named nobody.

    Ranks do not count that left because they had lost another one, or because srun told them to. Such a rank may be
    gone sooner than the one that was killed: the kernel closes connections first, and then takes the memory back.
    """
    for node, ranks, how in LINE.findall(VERDICT.split(log)[-1]):
        left = EXIT.match(how)
        number, code = SIGNALS.get(how, 0), int(left[1]) if left else 0
        if code in (LostRanks.exit_code, Stopped.exit_code) or number == signal.SIGTERM or not number + code:
            continue
        return Culprit(ranks, node, number, code)
    return None
