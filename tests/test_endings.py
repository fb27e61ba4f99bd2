"""status sees every death: of jobs of all stages that ended before, during or outside of the work, by files alone.

squeue and sacct are scripts that print a file each and note that they were called.
"""

import json
import shutil
from pathlib import Path

import pytest

from mistral.config import load_experiment, to_yaml
from mistral.kinds import kind_of
from mistral.manifest import Manifest, make_record
from mistral.workspace import Workspace
from pipeline.cli_inspect import take_status
from slurm import history

RUN = "alias-tiny-x21"
FAKE = """#!/bin/sh
echo {name} "$@" >> "{folder}/calls"
test -e "{folder}/{name}" || exit 1
cat "{folder}/{name}"
"""


class Site:
    """A workspace with jobs, and what Slurm says of them."""

    def __init__(self, folder: Path, packed: Path) -> None:
        self.folder, self.workspace = folder, Workspace(folder / "workspace")
        self.experiment = load_experiment(str(packed / "tiny.yaml"))
        shutil.copytree(packed / "workspace", self.workspace.root)
        (folder / "bin").mkdir()
        for name in ("squeue", "sacct"):
            (folder / "bin" / name).write_text(FAKE.format(name=name, folder=folder))
            (folder / "bin" / name).chmod(0o755)
        self.says("squeue")

    def says(self, command: str, *lines: str) -> None:
        """What a command prints from now on; without this, sacct does not answer."""
        (self.folder / command).write_text("".join(f"{line}\n" for line in lines))

    def submit(self, stage: str, job: str, *names: str, number: int = 1, flags: tuple[str, ...] | None = None) -> Path:
        """The traces of a submission."""
        folder = self.workspace.root / "jobs" / stage / f"{number:06d}-{int(job):08x}"
        folder.mkdir(parents=True)
        flags = flags if flags is not None else () if stage == "train" else ("--tasks", str(len(names)))
        told = {"stage": stage, "experiment": "tiny", "tasks": list(range(len(names))), "names": names, "flags": flags}
        (folder / "submission.json").write_text(json.dumps(told))
        (folder / "job.json").write_text(json.dumps({"job": job}))
        (folder / "experiment.yaml").write_text(to_yaml(self.experiment))
        return folder

    def attempt(self, label: str, name: str, **facts: object) -> None:
        """A file that an attempt left."""
        folder = self.workspace.root / "jobs" / "attempts" / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(facts))

    def forget_dataset(self) -> None:
        """Preprocess is no longer done."""
        shutil.rmtree(self.workspace.manifest() / "preprocess")

    def look(self) -> dict:
        """What `status --json` tells."""
        (self.folder / "calls").unlink(missing_ok=True)
        self.report = take_status(self.experiment, self.workspace)
        told: dict = json.loads(json.dumps(self.report.to_json()))
        return told

    def run(self) -> dict:
        """What is told of the first run."""
        row: dict = self.look()["runs"][0]
        return row

    def calls(self) -> list[str]:
        """The commands that the last look asked."""
        return [line.split()[0] for line in (self.folder / "calls").read_text().splitlines()]

    def record(self, stage: str, *key: str) -> None:
        """Something that was made."""
        kind = kind_of(stage, key).name
        Manifest(self.workspace).publish(make_record(kind, key, config="", inputs={}, files=[], facts={}))


@pytest.fixture
def site(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return Site(tmp_path, packed)


def test_a_job_that_died_before_its_first_line_is_failed_with_slurms_words_and_its_log(site):
    folder = site.submit("train", "12", RUN)
    log = folder / "12_0_log.err"
    log.write_text("python: not found")
    site.says("sacct", "12|FAILED|127:0")
    row = site.run()
    assert row["state"] == "failed"
    assert row["reason"].startswith("Slurm says FAILED, exit code 127 (no such command")
    assert row["log"] == str(log)
    assert site.calls() == ["squeue", "sacct"]
    told = site.report.to_json()["tasks"]
    assert [(one["stage"], one["name"], one["job"], one["state"]) for one in told] == [("train", RUN, "12", "failed")]
    assert f"train {RUN}: failed (job 12): Slurm says FAILED, exit code 127" in site.report.as_table()
    assert str(log) in site.report.as_table()


@pytest.mark.parametrize("line", ["12|FAILED|0:53", "12|TIMEOUT|0:0", "12|NODE_FAIL|0:0", "12|OUT_OF_MEMORY|0:125"])
def test_whatever_ended_a_job_without_a_word_is_told_in_slurms_words(site, line):
    site.submit("train", "12", RUN)
    site.attempt("12", "0000.begin", progress="0: 0:")
    site.says("sacct", line)
    row = site.run()
    assert (row["state"], row["log"]) == ("failed", None)
    assert f"Slurm says {line.split('|')[1]}" in row["reason"]


def test_a_stop_file_says_why_and_slurm_is_not_asked_again(site):
    site.submit("train", "12", RUN)
    site.attempt("12", "0000.end", code=None, reason="OSError: first")
    site.attempt("12", "0001.end", code=1, reason="StorageError: cannot write x: no space left")
    row = site.run()
    assert (row["state"], row["reason"], row["attempts"]) == (
        "failed",
        "StorageError: cannot write x: no space left",
        2,
    )
    assert site.calls() == ["squeue"]


@pytest.mark.parametrize("answer", [None, [], ["13|FAILED|1:0"]])
def test_where_accounting_is_off_or_has_forgotten_a_job_its_end_is_unknown_and_no_error(site, answer):
    site.submit("train", "12", RUN)
    site.forget_dataset()
    site.submit("preprocess", "11", "task 0 of 2", "task 1 of 2")
    if answer is not None:
        site.says("sacct", *answer)
    told = site.look()
    assert told["runs"][0]["state"] == "unknown"
    assert "accounting does not tell how" in told["runs"][0]["reason"]
    assert {one["state"] for one in told["tasks"]} == {"unknown"}
    site.attempt("11_1", "0000.end", code=1, reason="StorageError: full")
    states = {
        one["name"]: (one["state"], one["reason"]) for one in site.look()["tasks"] if one["stage"] == "preprocess"
    }
    assert states["task 1 of 2"] == ("failed", "StorageError: full")
    assert states["task 0 of 2"][0] == "unknown"


@pytest.mark.parametrize("stage", ["preprocess", "export"])
def test_tasks_of_preprocess_and_export_that_died_have_lines_of_their_own(site, stage):
    site.forget_dataset()
    folder = site.submit(stage, "12", *[f"task {number} of 5" for number in range(5)])
    (folder / "12_1_0_log.err").write_text("")
    site.attempt("12_1", "0000.begin")
    site.attempt("12_1", "0000.end", code=1, reason="StorageError: the disk is full\n  make room")
    site.says("sacct", "12_0|COMPLETED|0:0", "12_1|FAILED|1:0", "12_2|FAILED|127:0", "12_3|FAILED|127:0")
    site.says("squeue", f"12_4|RUNNING|None|{folder.name}|n1")
    told = site.look()
    assert [(one["name"], one["job"], one["state"]) for one in told["tasks"]] == [
        (f"task {number} of 5", f"12_{number}", "failed") for number in (1, 2, 3)
    ]
    assert {one["stage"] for one in told["tasks"]} == {stage}
    assert told["tasks"][0]["reason"].startswith("StorageError: the disk is full")
    assert told["tasks"][0]["log"] == str(folder / "12_1_0_log.err")
    assert "exit code 127" in told["tasks"][1]["reason"]
    assert site.calls() == ["squeue", "sacct"]
    table = site.report.as_table()
    assert f"{stage} task 1 of 5: failed (job 12_1): StorageError: the disk is full make room; log: {folder}" in table
    assert f"{stage} task 2 of 5 and 1 more: failed (job 12_2): Slurm says FAILED, exit code 127" in table


def test_a_task_that_was_done_again_has_no_failure_any_more(site):
    site.forget_dataset()
    site.submit("preprocess", "12", "task 0 of 2", "task 1 of 2")
    site.attempt("12_1", "0000.end", code=1, reason="StorageError: full")
    again = site.submit("preprocess", "13", "task 1 of 2", number=2, flags=("--tasks", "2"))
    site.says("sacct", "12_0|COMPLETED|0:0", "12_1|FAILED|1:0", "13|COMPLETED|0:0")
    assert site.look()["tasks"] == []
    site.says("squeue", f"13|PENDING|Priority|{again.name}|")
    assert site.look()["tasks"] == []
    site.says("squeue")
    other = site.submit("preprocess", "14", "task 0 of 3", number=3, flags=("--tasks", "3"))  # cut in another way
    site.says("squeue", f"14|PENDING|Priority|{other.name}|")
    (site.workspace.root / "jobs/preprocess" / again.name / "job.json").unlink()
    assert site.look()["tasks"] == []


def test_what_is_recorded_by_whomever_is_no_failure_and_the_accounting_is_not_asked(site):
    for stage in ("preprocess", "export"):
        site.submit(stage, "12" if stage == "preprocess" else "13", "task 0 of 1")
    for seed in site.experiment.seeds:
        for step in site.experiment.scheduled_steps():
            site.record("export", site.experiment.run_name(seed), f"checkpoint-{step}")
    site.submit("train", "14", RUN)
    site.record("train", RUN, "complete")
    told = site.look()
    assert (told["tasks"], told["runs"][0]["state"]) == ([], "complete")
    assert site.calls() == ["squeue"]


def test_a_job_that_was_cancelled_as_it_waited_has_stopped_and_not_failed(site):
    site.forget_dataset()
    site.submit("preprocess", "12", *[f"task {number} of 7" for number in range(7)])
    site.says("sacct", "12_1|COMPLETED|0:0", "12_[0,2-6:2%2]|CANCELLED by 1000|0:0", "12_[3,5,...]|CANCELLED|0:0")
    told = site.look()["tasks"]
    assert [(one["job"], one["state"]) for one in told] == [
        (f"12_{number}", "stopped") for number in (0, 2, 3, 4, 5, 6)
    ]


def test_a_run_that_never_began_is_seen_without_naming_its_experiment(site):
    site.submit("train", "12", RUN)
    site.says("sacct", "12|FAILED|127:0")
    report = take_status(None, site.workspace)
    assert report.runs == []
    assert [(one.stage, one.name, one.state) for one in report.tasks] == [("train", RUN, "failed")]


def test_a_run_that_works_again_tells_why_its_last_attempt_ended(site):
    folder = site.submit("train", "12", RUN)
    killed = "rank 1 was killed by signal 9 (out of memory?) on node n2"
    site.attempt("12", "0000.begin")
    site.attempt("12", "0000.end", code=None, reason=killed)
    site.says("squeue", f"12|PENDING|BeginTime|{folder.name}|")
    row = site.run()
    assert (row["state"], row["reason"], row["last_end"]) == ("queued", "BeginTime", killed)
    site.attempt("12", "0001.begin")
    site.says("squeue", f"12|RUNNING|None|{folder.name}|n1")
    row = site.run()
    assert (row["state"], row["reason"], row["last_end"], row["attempts"]) == ("running", None, killed, 2)
    assert f"before: {killed}" in site.report.as_table()


def test_a_job_between_two_attempts_is_not_called_failed(site):
    """A job that is requeued is out of the queue for a moment."""
    site.submit("train", "12", RUN)
    site.attempt("12", "0000.end", code=None, reason="rank 1 was killed by signal 9")
    site.says("sacct", "12|PENDING|0:0")
    assert site.run()["state"] == "unknown"
    site.says("sacct", "12|FAILED|1:0")
    row = site.run()
    assert (row["state"], row["reason"]) == ("failed", "rank 1 was killed by signal 9")


def test_the_reason_of_a_failure_stays_through_cancelled_jobs_until_progress_is_made(site):
    site.submit("train", "12", RUN)
    site.attempt("12", "0000.begin", progress="0: 0:")
    site.attempt("12", "0000.end", code=1, reason="ConfigError: no such GPU", progress="0: 0:")
    site.submit("train", "13", RUN, number=2)  # cancelled as it waited
    for answer in ([], ["13|CANCELLED by 0|0:0"]):
        site.says("sacct", *answer)
        row = site.run()
        assert (row["state"], row["reason"], row["job"]) == ("failed", "ConfigError: no such GPU", "13")
        assert [task.job for task in site.report.tasks] == ["12"]
    site.submit("train", "14", RUN, number=3)  # cancelled before it recorded anything
    site.attempt("14", "0000.begin", progress="0: 0:")
    site.attempt("14", "0000.end", code=75, reason="Stopped: by SIGTERM", progress="0: 0:")
    assert site.run()["reason"] == "ConfigError: no such GPU"
    site.record("train", RUN, "state", "step-00000003")
    row = site.run()
    assert (row["state"], row["reason"]) == ("not started", "Stopped: by SIGTERM")
    site.submit("train", "15", RUN, number=4)
    site.attempt("15", "0000.begin", progress="0: 0:")
    site.attempt("15", "0000.end", code=75, reason="Stopped: at step 3", progress="0: 1:step-00000003")
    assert site.run()["reason"] == "Stopped: at step 3"


def test_a_failure_is_over_once_the_run_goes_on_by_whomever(site):
    site.submit("train", "12", RUN)
    site.attempt("12", "0000.begin", progress="0: 0:")
    site.attempt("12", "0000.end", code=3, reason="NonFiniteLoss: no number", progress="0: 0:")
    assert site.run()["state"] == "failed"
    site.record("train", RUN, "begin")
    site.record("train", RUN, "state", "step-00000003")  # trained on this machine
    row = site.run()
    assert (row["state"], row["reason"]) == ("stopped", None)


def test_a_failure_that_left_no_file_stays_through_a_cancelled_job_too(site):
    site.submit("train", "12", RUN)
    site.submit("train", "13", RUN, number=2)
    site.says("sacct", "12|FAILED|127:0", "13|CANCELLED|0:0")
    row = site.run()
    assert row["state"] == "failed"
    assert "exit code 127" in row["reason"]
    assert site.calls() == ["squeue", "sacct"]


def test_thousands_of_failures_are_few_lines_and_few_files_are_read(site, monkeypatch):
    site.forget_dataset()
    site.submit("export", "12", *[f"task {number} of 1000" for number in range(1000)])
    site.says("sacct", *[f"12_{number}|FAILED|1:0" for number in range(1000)])
    read: list[Path] = []
    former = history.endings.story_of
    monkeypatch.setattr(history.endings, "story_of", lambda folder: read.append(folder) or former(folder))
    told = site.look()
    assert len(told["tasks"]) == 1000
    assert len(read) == history.SHOWN
    assert len(site.report.as_table().splitlines()) < 10


@pytest.mark.parametrize("held", ["launch failed requeued held", "launch_failed_requeued_held", "JobHoldMaxRequeue"])
def test_the_nodes_of_a_job_and_the_line_that_releases_one_are_told(site, held):
    folder = site.submit("train", "12", RUN, "battlestar-tiny-x49")
    site.says("squeue", f"12_0|RUNNING|None|{folder.name}|n[1-2]", f"12_1|PENDING|{held}|{folder.name}|")
    told = site.look()
    assert told["runs"][0]["nodes"] == "n[1-2]"
    assert [(job["nodes"], job["release"]) for job in told["jobs"]] == [("n[1-2]", ""), ("", "scontrol release 12_1")]
    table = site.report.as_table()
    assert "n[1-2]" in table
    assert f"train battlestar-tiny-x49 is held ({held}); release it: scontrol release 12_1" in table
    site.says("squeue", "12_1|PENDING|Priority|a comment | with bars|", f"12_0|PENDING|Priority|{folder.name}|")
    assert [job["release"] for job in site.look()["jobs"]] == [""]
    assert site.calls()[0] == "squeue"
