"""the commands of Slurm -> what runs, what waits, what is possible here; where Slurm does not answer, None."""

import logging
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mistral.errors import EnvironmentProblem

# Without an answer: until the user is told, until a command is ended, until sbatch is ended.
NOTICE_SECONDS, ANSWER_SECONDS, SUBMIT_SECONDS = 2.0, 30.0, 120.0
DEFAULT_MAX_ARRAY_SIZE = 1001
TASKS = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
# Why squeue says that a job is held, in lower case and without the underscores of newer versions.
HELD_BY_SLURM = ("launch failed requeued held", "jobholdmaxrequeue")
HELD_BY_A_PERSON = ("jobhelduser", "jobheldadmin", "job requeued in held state")
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT")


@dataclass(frozen=True)
class Job:
    """One task of an array, or a job without one."""

    label: str  # 12_3, or 12
    state: str  # PENDING, RUNNING, ...
    reason: str  # why it waits
    submission: str  # its comment, which names the submission that it belongs to
    nodes: str = ""  # where it runs: n[1-2]; empty while it waits


@dataclass(frozen=True)
class Ended:
    """What the accounting says of a job, or of a task of an array."""

    state: str  # FAILED, CANCELLED, COMPLETED, ...
    code: int  # exit code of its batch script
    signal: int  # that killed the script; Slurm writes 53 for a job that it could not start

    def words(self) -> str:
        """For people: `Slurm says FAILED, exit code 127 (no such command: ...)`."""
        how = f", signal {self.signal}" if self.signal else f", exit code {self.code}" if self.code else ""
        hint = HINTS.get((self.code, self.signal), "")
        return f"Slurm says {self.state}{how}" + (f" ({hint})" if hint else "")


HINTS = {
    (127, 0): "no such command: check python and setup in the cluster file",
    (126, 0): "not executable: check python and setup in the cluster file",
    (0, 53): "the job could not be started: check that its node sees the workspace",
}


def held_by(reason: str) -> Literal["Slurm", "a person"] | None:
    """Who holds a waiting job, by squeue's reason; None if nobody does."""
    plain = reason.replace("_", " ").lower()
    if plain in HELD_BY_SLURM:
        return "Slurm"
    return "a person" if plain in HELD_BY_A_PERSON else None


def advice_of(label: str, reason: str) -> str:
    """What ends the hold of a job; only an administrator may end that of one."""
    admin = reason.replace("_", " ").lower() == "jobheldadmin"
    return "ask an administrator of the cluster" if admin else release_line(label, reason)


def release_line(label: str, reason: str) -> str:
    """`scontrol release 12_3`: the command that ends the hold of a job; empty if squeue's reason is no hold."""
    return f"scontrol release {label}" if held_by(reason) else ""


def ask(*command: str) -> subprocess.CompletedProcess[str] | None:
    """Run one of Slurm's commands; None if there is none here, or no answer in time. Says so while it waits."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, errors="replace")
    except (FileNotFoundError, PermissionError):
        return None
    longest = SUBMIT_SECONDS if command[0] == "sbatch" else ANSWER_SECONDS
    with process:
        for seconds in (NOTICE_SECONDS, longest - NOTICE_SECONDS):
            try:
                output, errors = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                if seconds == NOTICE_SECONDS:
                    text = "%s has not answered for %g s; waiting up to %g s (scontrol ping tells if slurmctld is up)"
                    logging.getLogger(__name__).warning(text, command[0], NOTICE_SECONDS, longest)
                continue
            return subprocess.CompletedProcess(command, process.returncode, output, errors)
        process.kill()
    return None


def my_jobs() -> list[Job] | None:
    """All jobs of this user that wait or run, in one call; None if Slurm does not answer."""
    answer = ask("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%k|%N")
    if answer is None or answer.returncode:
        return None
    return [_parse_job(*line.split("|")) for line in answer.stdout.splitlines() if line.count("|") >= 3]


def _parse_job(label: str, state: str, reason: str, *rest: str) -> Job:
    """Comments of foreign jobs may hold the separator."""
    *comment, nodes = rest if len(rest) > 1 else (*rest, "")
    return Job(label, state, reason, "|".join(comment), nodes)


def accounting(jobs: Sequence[str]) -> dict[str, Ended] | None:
    """How jobs ended, by label (12_3, or 12), in one call.

    Args:
        jobs: the numbers of jobs and arrays.

    Returns:
        what the accounting knows of them and of the tasks of these arrays; None if it does not answer, or is off.
    """
    fields = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State,ExitCode")
    answer = ask("sacct", *fields, f"--jobs={','.join(jobs)}")
    if answer is None or answer.returncode:
        return None
    found: dict[str, Ended] = {}
    for line in answer.stdout.splitlines():
        if match := re.match(r"([^|]+)\|([A-Z_]+)[^|]*\|(\d+):(\d+)$", line):  # the state may be `CANCELLED by 1000`
            found |= dict.fromkeys(_labels(match[1]), Ended(match[2], int(match[3]), int(match[4])))
    return found


def _labels(job: str) -> list[str]:
    """`12`, `12_3`, or those of `12_[3-5,8-12:2%2]`: the tasks of an array that never started are one line."""
    number, _, tasks = job.partition("_[")
    if not tasks:
        return [job]
    parts = (TASKS.fullmatch(part) for part in tasks.partition("%")[0].rstrip("]").split(","))  # the rest may be `...`
    ranges = (range(int(m[1]), int(m[2] or m[1]) + 1, int(m[3] or 1)) for m in parts if m)
    return [f"{number}_{index}" for indices in ranges for index in indices]


def states_of(label: str) -> list[str] | None:
    """The state of a job, or of all tasks of an array; empty if Slurm has forgotten it, None if it does not answer."""
    answer = ask("squeue", "--noheader", "--array", "--states=all", "--format=%T", f"--jobs={label}")
    if answer is None:
        return None
    if answer.returncode:
        return [] if "Invalid job id" in answer.stderr else None
    return answer.stdout.split()


def may_run(label: str) -> bool | None:
    """Whether a job runs, or waits to run (again); None if Slurm does not answer.

    A node that failed puts its job into NODE_FAIL for a moment before it waits again.
    """
    states = states_of(label)
    return None if states is None else not set(ENDED).issuperset(states)


def is_preempted(label: str) -> bool:
    """Whether a job was told to give way to another one."""
    answer = ask("scontrol", "show", "job", label)
    found = re.search(r"\bPreemptTime=(\S+)", answer.stdout) if answer else None
    return found is not None and found[1] not in ("None", "(null)", "Unknown")


def requeue(label: str) -> str:
    """Run a job again from the start; returns what Slurm objects, or nothing."""
    answer = ask("scontrol", "requeue", label)
    if answer is None:
        return "scontrol did not answer"
    return answer.stderr.strip() if answer.returncode else ""


def release(label: str) -> str:
    """Let a held job run; returns what Slurm objects, or nothing."""
    answer = ask("scontrol", "release", label)
    if answer is None:
        return "scontrol did not answer"
    return answer.stderr.strip() if answer.returncode else ""


def cancel(labels: Sequence[str]) -> None:
    """End jobs: those that run save their state and leave.

    Raises:
        EnvironmentProblem: Slurm refuses, or does not answer.
    """
    answer = ask("scancel", *labels)
    if answer is None or answer.returncode:
        reason = answer.stderr.strip() if answer else "scancel did not answer"
        raise EnvironmentProblem(f"found that jobs cannot be cancelled ({reason}); try: scancel {' '.join(labels)}")


def cancel_waiting(name: str) -> None:
    """Cancel the waiting jobs of a name, which would find nothing to do; ignored if Slurm does not answer."""
    ask("scancel", "--state=PENDING", f"--name={name}")


def max_array_size() -> int:
    """Above all indices of an array; Slurm's default where it does not answer."""
    answer = ask("scontrol", "show", "config")
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer.stdout, flags=re.M) if answer else None
    return int(found[1]) if found else DEFAULT_MAX_ARRAY_SIZE
