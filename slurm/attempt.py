"""one attempt of a task in a Slurm job -> its ranks, its owner, why it ended, and whether it is run again.

workspace/jobs/attempts/<job>/0002.begin   attempt 2 (Slurm's restart count): what of its task was recorded by then
workspace/jobs/attempts/<job>/0002.end     why it ended: the stop file, and what was recorded by then; of the last
                                           attempt of a crash loop, why the job is not run again

All ranks share one stop file. A rank that failed by itself is believed before one that was told to stop, and that one
before those that lost another rank. A rank that was killed writes nothing: the batch script names it, as srun did.

Slurm runs a job again by itself after a node failure, a preemption or `scontrol requeue`. After all else the batch
script asks `again`, once its step has ended; attempts that make no progress are bounded either way. The jobs of a chain
are attempts of one task: their folder is that of the chain, and attempt 2 is its third job. A job that finds nothing
left to do, or a failure that needs a human, cancels the remaining jobs.
"""

import contextlib
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mistral.errors import DeadRank, EnvironmentProblem, Findings, LostRanks, MistralError, Stopped, StorageError
from mistral.files import canonical_json, publish_bytes, read_json, remove_folder, write_bytes
from mistral.manifest import Manifest
from mistral.workspace import Workspace
from pipeline import local
from slurm import culprit, queue, rendezvous, submissions, task
from slurm.chain import Link
from slurm.submissions import jobs_folder

Facts = dict[str, Any]
GAVE_UP = re.compile(r"[Tt]im(ed |e)out|appeared within")  # of LostRanks: another rank hung, and was not killed
AGAIN = (LostRanks, DeadRank)  # no mistake of a person: run again
ATTEMPTS = 3  # in a row that may make no progress, where the cluster file says nothing


def job_label() -> str | None:
    """This job as Slurm's commands call it: `12_3` in an array, else `12`; None outside of Slurm."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def restart_count() -> int:
    """How often Slurm has started this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


@dataclass(frozen=True)
class Goal:
    """What a task makes: records under these keys of a stage; how many attempts in a row may add none; its ranks."""

    stage: str
    keys: tuple[tuple[str, ...], ...]
    attempts: int
    ranks: int = 1

    def progress(self, manifest: Manifest) -> str:
        """What is recorded; the same text if nothing was added."""
        listed = [manifest.names(self.stage, tuple(key)) for key in self.keys]
        return " ".join(f"{len(names)}:{names[-1] if names else ''}" for names in listed)


@dataclass(frozen=True)
class Attempt:
    """One attempt of a task."""

    folder: Path
    job: str
    restart: int  # or the number of the link in a chain
    link: Link | None = None

    @classmethod
    def here(cls, workspace: Workspace) -> "Attempt | None":
        """The attempt that this process belongs to; None outside of Slurm."""
        job, link = job_label(), Link.here()
        if job is None:
            return None
        name, number = (job, restart_count()) if link is None else (link.chain, link.number)
        return cls(jobs_folder(workspace, "attempts") / name, job, number, link)

    def path(self, kind: str, restart: int | None = None) -> Path:
        """`0002.begin` or `0002.end`."""
        return self.folder / f"{self.restart if restart is None else restart:04d}.{kind}"

    def begin(self, goal: Goal, progress: str) -> None:
        """Write down that the attempt begins.

        Raises:
            Findings: too many before it made no progress.
        """
        step = os.environ.get("SLURM_STEP_LAUNCHER_PORT", "")
        if self.restart == 0 and _read(self.path("begin")).get("step") != step:
            remove_folder(self.folder)  # of a job of the same number, on a cluster that began to count again
        futile = self.without_progress(progress)
        if futile >= goal.attempts:
            raise self.given_up(futile)
        publish_bytes(self.path("begin"), canonical_json({**asdict(goal), "progress": progress, "step": step}))

    def end(self, error: BaseException, goal: Goal, manifest: Manifest) -> None:
        """Leave the stop file: why this attempt ends; nothing is written if another rank has given a better reason."""
        code = error.exit_code if isinstance(error, MistralError) and not isinstance(error, AGAIN) else None
        told = stop_file(type(error).__name__, code, str(error), local.signals_received())
        if weight(told) <= weight(_read(self.path("end"))):
            return
        data = canonical_json(told | {"progress": goal.progress(manifest)})
        if not publish_bytes(self.path("end"), data) and weight(told) > weight(_read(self.path("end"))):
            write_bytes(self.path("end"), data)

    def conclude(self, code: int, manifest: Manifest) -> Facts:
        """The stop file, once the step has ended with an exit code; it names the rank that ended first, if known."""
        begun, told = _read(self.path("begin")), _read(self.path("end"))
        goal = Goal(begun.get("stage", ""), begun.get("keys", ()), ATTEMPTS)
        if reason := _better_reason(told, code, begun.get("ranks", 0)):
            told = stop_file("Killed", None, reason, told.get("signals", []))
        told |= (
            {"progress": goal.progress(manifest)} if begun else {}
        )  # rank 0 may have recorded more since a rank failed
        write_bytes(self.path("end"), canonical_json(told))
        return told

    def without_progress(self, progress: str) -> int:
        """How many attempts before this one, in a row, began with as much recorded as now."""
        count = 0
        for restart in reversed(range(self.restart)):
            begun = _read(self.path("begin", restart))
            if begun.get("progress") not in (progress, None):
                break
            count += bool(begun) or self.link is None  # a link that was cancelled as it waited was no attempt
        return count

    def futile(self, manifest: Manifest) -> Findings | None:
        """Why a task ends whose last attempts, this one among them, made no progress; None if they were few enough."""
        begun = _read(self.path("begin"))  # empty if the attempt did not come so far
        goal = Goal(begun.get("stage", ""), begun.get("keys", ()), begun.get("attempts", ATTEMPTS))
        progress = goal.progress(manifest)
        if begun.get("progress") not in (progress, None):
            return None
        futile = self.without_progress(begun.get("progress", progress)) + 1
        return self.given_up(futile) if futile >= goal.attempts else None

    def given_up(self, futile: int) -> Findings:
        """Why the task is not run again."""
        ends = [_read(self.path("end", restart)) for restart in reversed(range(self.restart + 1))]
        reason = next((end["reason"] for end in ends if end), "it was killed and could not say why")
        return Findings(
            f"Slurm job {self.job}: found {futile} attempts in a row without progress, so it is not run again\n"
            f"  the last reason: {reason}\n  mend it, then run the same command again"
        )


def stop_file(kind: str, code: int | None, reason: str, signals: Sequence[str]) -> Facts:
    """What a stop file holds: a kind of error, an exit code where a person must mend it, a reason, the signals."""
    text = reason if kind == "Killed" else f"{kind}: {reason}"
    return {"kind": kind, "code": code, "reason": text, "signals": list(signals)}


def weight(told: Facts) -> int:
    """How much a stop file is believed: that of a rank which failed by itself most."""
    return {"": 0, "LostRanks": 1, "Stopped": 2}.get(told.get("kind", ""), 3)


def _better_reason(told: Facts, code: int, ranks: int) -> str:
    """Why a step ended, where its stop file does not tell or may not be believed; else empty.

    Args:
        told: the stop file; empty if there is none.
        code: exit code of the step.
        ranks: how many there were; 0 if that is not known.
    """
    if told.get("code") not in (None, Stopped.exit_code):
        return ""  # a person must mend it
    first, believed = culprit.find(culprit.read_log()), weight(told)
    left = (Stopped.exit_code, LostRanks.exit_code)
    if first and (believed < 3 or first.signal):
        return first.words(hung=believed == 1 and GAVE_UP.search(told["reason"]) is not None)
    if believed == 3 or (told and code in left) or (believed == 2 and code < 128):
        return ""
    ended = f"its step ended with exit code {code}"
    if code - 128 in (0, int(signal.SIGTERM)) or code < 128:
        return "" if told else ended
    return f"{ended}: {'rank 0' if ranks == 1 else 'a rank'} was {local.killed_by(code - 128)}"


def _read(path: Path) -> Facts:
    try:
        told: Facts = read_json(path)
    except FileNotFoundError:
        return {}
    return told


@contextlib.contextmanager
def attempt(workspace: Workspace, goal: Goal) -> Iterator[None]:
    """Do a task: the ranks of its step meet, the attempts are counted, and the reason is kept when it fails.

    Outside of Slurm this does nothing.

    Args:
        workspace: all ranks see it.
        goal: what the task makes.

    Raises:
        Findings: too many attempts made no progress.
    """
    this = Attempt.here(workspace)
    if this is None:
        yield
        return
    try:
        task.listen()
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            this.begin(goal, goal.progress(Manifest(workspace)))
        if rendezvous.is_one_of_several(os.environ):
            refuse_other_size(goal)
            os.environ.update(rendezvous.join(os.environ, this.folder))
        yield
    except BaseException as error:
        with contextlib.suppress(OSError, StorageError):  # on a full disk; what hit the task itself is told
            this.end(error, goal, Manifest(workspace))
        raise


def refuse_other_size(goal: Goal) -> None:
    """Refuse a step of another size, which would train another batch or do the same work several times.

    Raises:
        EnvironmentProblem: says which size is right.
    """
    found = int(os.environ["SLURM_STEP_NUM_TASKS"])
    if found != goal.ranks:
        raise EnvironmentProblem(
            f"{goal.stage}: found {found} tasks of srun, expected {goal.ranks}, the ranks of the cluster file\n"
            "  set --nodes and --ntasks-per-node to its nodes and ranks_per_node"
        )


def again(workspace: Workspace, code: int) -> None:
    """Called by the batch script when its step has ended with an exit code: run the task again, or end it.

    Raises:
        MistralError: the reason why the task is not run again.
        Stopped: it is run again, or a signal asked it to leave.
    """
    this = Attempt.here(workspace)
    if this is None:
        return
    rendezvous.leave(os.environ, this.folder)
    outcome = None if code == 0 else _outcome(this, Manifest(workspace), code)
    if this.link is not None and not isinstance(outcome, Stopped):
        queue.cancel_waiting(os.environ["SLURM_JOB_NAME"])
    if outcome is not None:
        raise outcome


def _outcome(this: Attempt, manifest: Manifest, code: int) -> MistralError:
    """What comes after an attempt that failed: what people must mend, or Stopped, which says how it goes on."""
    end = this.conclude(code, manifest)
    reason = f"Slurm job {this.job}: {end['reason']}"
    if end["code"] not in (None, Stopped.exit_code):
        return (Findings if end["code"] == Findings.exit_code else MistralError)(reason)
    if this.link is None and _was_asked_to_leave(this.job, end, code):
        return Stopped(f"{reason}\n  it is left as it is")
    if over := this.futile(manifest):
        verdict = {**end, "code": over.exit_code, "reason": f"Findings: {over}"}
        write_bytes(this.path("end"), canonical_json(verdict))
        return over
    return Stopped(f"{reason}\n  {_go_on(this)}")


def _was_asked_to_leave(job: str, end: Facts, code: int) -> bool:
    """Whether a job was cancelled, or Slurm itself runs it again."""
    # When a rank dies srun sends SIGTERM to the others; only ranks that all left in order were asked to leave.
    asked = code in (Stopped.exit_code, LostRanks.exit_code) and end["code"] == Stopped.exit_code
    asked = asked and not {"SIGTERM", "SIGINT"}.isdisjoint(end["signals"])
    # Slurm requeues a preempted job that it has to kill, but not one that leaves within its time of grace.
    left = asked and not queue.is_preempted(job)
    return left or queue.states_of(job) not in (None, ["RUNNING"])


def _go_on(this: Attempt) -> str:
    """Have the task run again; returns how. A chain needs no more than to end: Slurm then begins its next job."""
    if this.link is not None:
        last = "it was the last job of its chain; run the same command to go on"
        submission = submissions.read(this.folder.parents[1] / "train" / this.link.chain)
        submitted = len(submission.jobs()) if submission else 0  # Slurm may have refused the others
        return last if this.link.is_last(submitted or this.link.links) else "the next job of its chain goes on"
    objection = queue.requeue(this.job)
    return (
        f"it cannot be requeued: {objection}; run the same command to go on" if objection else "it waits to run again"
    )


# --- who owns a run ---------------------------------------------------------------------------------------------


def owner() -> Facts:
    """This process as a lease names it: a Slurm job with its restart count and chain, or a process of this machine."""
    process, job, link = local.process_owner(), job_label(), Link.here()
    if job is None:
        return process
    chain = {} if link is None else {"chain": link.chain, "link": link.number}
    return {**process, "kind": "slurm", "job": job, "restart": restart_count(), **chain}


def owner_is_alive(former: Facts) -> bool | None:
    """Whether the owner that a lease names still works; None if that cannot be known."""
    seen = local.is_alive({**former, "kind": "local"})
    if seen is not None or former.get("kind") != "slurm":
        return seen
    return queue.may_run(str(former.get("job")))
