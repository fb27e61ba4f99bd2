"""What Slurm holds, refuses to answer or leaves undone: released, bounded, waited for and told."""

import errno
import fcntl
import json
import logging
import time
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, slurm  # noqa: F401  a fixture

from mistral.errors import EnvironmentProblem, Findings
from mistral.kinds import kind_of
from mistral.manifest import Manifest, make_record
from mistral.progress import Silent
from mistral.workspace import Workspace
from pipeline import options
from slurm import follow, held, lock, missing, plans, queue

# ruff: noqa: F811  pytest's way of asking for a fixture
ALIAS, BATTLESTAR = "alias-tiny-x21", "battlestar-tiny-x49"
LAUNCH = "launch failed requeued held"


class Heard(Silent):
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Keep a line."""
        self.lines.append(text)


@pytest.mark.parametrize(
    ("reason", "who"),
    [
        (LAUNCH, "Slurm"),
        ("launch_failed_requeued_held", "Slurm"),
        ("JobHoldMaxRequeue", "Slurm"),
        ("JobHeldUser", "a person"),
        ("JobHeldAdmin", "a person"),
        ("job requeued in held state", "a person"),
        ("Priority", None),
        ("Dependency", None),
        ("None", None),
        ("", None),
    ],
)
def test_who_holds_a_job_is_told_by_its_reason(reason, who):
    assert queue.held_by(reason) == who
    assert queue.release_line("12_3", reason) == ("scontrol release 12_3" if who else "")


def hold(slurm: FakeSlurm, label: str, reason: str) -> None:
    """Let a task be held."""
    slurm.change(lambda text: text.replace(f"{label}|PENDING|Priority", f"{label}|PENDING|{reason}"))


def test_the_same_command_releases_what_slurm_holds_a_bounded_number_of_times(slurm: FakeSlurm):
    slurm.lines("train")
    for number in range(1, held.RELEASES + 1):
        hold(slurm, "11_1", LAUNCH)
        said = slurm.call("train").stderr
        assert f"train {BATTLESTAR}: job 11_1 is held by Slurm ({LAUNCH}); released it, {number} of 3 times" in said
        assert "11_1|PENDING|Priority|" in slurm.queue()[1]
    hold(slurm, "11_1", LAUNCH)
    assert "released 3 times; find out why, then: scontrol release 11_1" in slurm.call("train").stderr
    assert f"11_1|PENDING|{LAUNCH}|" in slurm.queue()[1]
    hold(slurm, "11_0", "JobHoldMaxRequeue")  # each job has a count of its own
    slurm.change(lambda text: text.replace("11_0|PENDING", "11_0|COMPLETING"))  # a copy of it is still ending
    assert "released it, 1 of 3 times" in slurm.call("train").stderr


@pytest.mark.parametrize("reason", ["JobHeldUser", "JobHeldAdmin"])
def test_what_a_person_holds_is_left_alone_and_told(slurm: FakeSlurm, reason):
    slurm.lines("train")
    hold(slurm, "11_0", reason)
    before = slurm.queue()
    advice = "ask an administrator of the cluster" if reason == "JobHeldAdmin" else "scontrol release 11_0"
    said = slurm.call("train").stderr
    assert f"job 11_0 is held by a person ({reason}); left alone; to let it run: {advice}" in said
    assert slurm.queue() == before
    hold(slurm, "11_1", reason)
    assert (
        f"train 2 tasks: job 11 is held by a person ({reason}); left alone; to let it run: {advice.removesuffix('_0')}"
        in (slurm.call("train").stderr)
    )


def test_waiting_releases_what_slurm_holds_and_ends_where_that_does_not_help(slurm: FakeSlurm, monkeypatch):
    slurm.lines("run")
    slurm.change(lambda text: "".join(line for line in text.splitlines(True) if not line.startswith("11")))
    slurm.change(lambda text: text.replace("13_0|PENDING|Priority", "13_0|PENDING|Dependency"))
    slurm.change(lambda text: text.replace("13_1|PENDING|Priority", "13_1|PENDING|Dependency"))
    hold(slurm, "12_1", LAUNCH)
    heard, polls = Heard(), []

    def pause(seconds: float) -> None:
        if seconds != follow.ASK_SECONDS:  # of subprocess
            return
        polls.append(seconds)
        hold(slurm, "12_1", LAUNCH)
        if len(polls) == 5:  # alias ends well; battlestar is held for good, and export waits for it
            slurm.change(lambda text: "".join(line for line in text.splitlines(True) if not line.startswith("12_0")))

    monkeypatch.setattr(time, "sleep", pause)
    with pytest.raises(Findings, match=f"train {BATTLESTAR}: found that Slurm holds job 12_1.*after 3 releases"):
        follow.follow(Workspace(slurm.workspace), "tiny", heard)
    assert len(polls) == 5
    told = [line.partition("; ")[2].partition(",")[0] for line in heard.lines if "12_1 is held" in line]
    assert told == ["released it"] * 3 + ["released 3 times; find out why"]


# --- what is missing when all jobs have ended -------------------------------------------------------------------


def context(slurm: FakeSlurm):
    return options.make_context(str(slurm.experiment), slurm.workspace, str(slurm.cluster), (), ["run"])


def record(slurm: FakeSlurm, *names: tuple[str, ...]) -> None:
    for stage, *key in names:
        kind = kind_of(stage, tuple(key)).name
        record = make_record(kind, tuple(key), config="", inputs={}, files=[], facts={})
        Manifest(Workspace(slurm.workspace)).publish(record)


def test_what_is_left_of_an_export_that_ended_well_is_told_by_its_checkpoints(slurm: FakeSlurm):
    slurm.lines("run")
    weights = [("train", ALIAS, "weights", f"step-{step:08d}") for step in (0, 2, 4, 8, 12)]
    record(slurm, *weights, ("train", ALIAS, "complete"))
    folder = slurm.workspace / "jobs" / "attempts"
    for label, name, told in [
        ("13_0", "0000.begin", {}),
        ("12_1", "0000.begin", {}),
        ("12_1", "0000.end", {"code": 3}),
    ]:
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / name).write_text(json.dumps(told | {"reason": "NonFiniteLoss: step 7"}))
    with pytest.raises(Findings) as told:
        missing.refuse_missing(context(slurm), ("train", "export"), plans.Choice())
    assert str(told.value).splitlines()[1:] == [
        f"  train {BATTLESTAR}: NonFiniteLoss: step 7",
        f"  export task 0 of 2: {ALIAS}/checkpoint-0, {ALIAS}/checkpoint-2, {ALIAS}/checkpoint-4 and 2 more are "
        "trained but not exported: run the stage again",
        f"  export task 1 of 2: {BATTLESTAR}/checkpoint-0, {BATTLESTAR}/checkpoint-2, {BATTLESTAR}/checkpoint-4 and 2 "
        "more are not trained yet",
        "  mend these, then run the same command again",
    ]


def test_a_task_without_a_reason_is_told_with_its_job_and_where_to_look(slurm: FakeSlurm):
    slurm.lines("train")
    (slurm.workspace / "jobs" / "attempts" / "11_0").mkdir(parents=True)
    (slurm.workspace / "jobs" / "attempts" / "11_0" / "0000.begin").write_text("{}")
    with pytest.raises(Findings) as told:
        missing.refuse_missing(context(slurm), ("train",), plans.Choice())
    assert f"train {ALIAS}: job 11_0 ended without a reason of its own, as one that is killed; see: mist" in str(
        told.value
    )
    assert f"train {BATTLESTAR}: job 11_1 never began its work" in str(told.value)


# --- Slurm, or the file system, does not answer ------------------------------------------------------------------


def test_a_command_that_does_not_answer_is_told_and_ended(slurm: FakeSlurm, monkeypatch, caplog):
    slow = slurm.folder.parent / "bin" / "squeue"
    slow.write_text("#!/bin/bash\nsleep 60\n")
    monkeypatch.setattr(queue, "NOTICE_SECONDS", 0.1)
    monkeypatch.setattr(queue, "ANSWER_SECONDS", 0.3)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert queue.ask("squeue") is None
    assert time.monotonic() - began < 30
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == ["squeue has not answered for 0.1 s"]
    monkeypatch.setattr(queue, "SUBMIT_SECONDS", 0.3)
    (slurm.folder.parent / "bin" / "sbatch").write_text("#!/bin/bash\nsleep 60\n")
    slow.write_text("#!/bin/bash\ntrue\n")
    assert "sbatch did not answer\n  Slurm may have taken the job all the same" in slurm.refusal("train")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_the_file_system_has_no_flock_one_process_submits_all_the_same(tmp_path, monkeypatch, number):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    workspace = Workspace(tmp_path)
    busy = pytest.raises(EnvironmentProblem, match=r"found that process .* submits jobs of this workspace")
    with lock.alone(workspace), busy, lock.alone(workspace):
        pytest.fail("two at a time")
    with lock.alone(workspace):  # it was given back
        pass
    newest = max(path for path in Path(tmp_path / "jobs/.submitting.leases").iterdir() if "released" not in path.name)
    newest.with_name(f"{newest.name}.released").unlink()
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"start_time": 1}))  # its process was killed
    with lock.alone(workspace):
        pass
    newest = max(path for path in Path(tmp_path / "jobs/.submitting.leases").iterdir() if "released" not in path.name)
    newest.with_name(f"{newest.name}.released").unlink()
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"host": "elsewhere"}))
    with (
        pytest.raises(EnvironmentProblem, match=r"if that process has ended, remove .*\.submitting\.leases"),
        lock.alone(workspace),
    ):
        pytest.fail("nobody knows whether another one submits")


def test_an_error_of_the_work_is_no_error_of_the_lock(tmp_path):
    with pytest.raises(BlockingIOError), lock.alone(Workspace(tmp_path)):
        raise BlockingIOError
