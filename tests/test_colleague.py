"""Somebody who may read a workspace, but not its jobs, is told what is not visible, and sees no traceback."""

import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.context import ForkContext
from pathlib import Path

import pytest

from mistral.lease import acquire
from mistral.workspace import Workspace
from pipeline.cli import main

NOBODY = 65534
RUN = "alias-tiny-x21"
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shared(packed: Path) -> Iterator[Path]:
    """A folder that everybody may read, with an experiment, a workspace, and jobs that only their owner may see."""
    folder = Path(tempfile.mkdtemp(prefix="mistral-shared-"))  # where pytest's folders are, only their owner may look
    try:
        for name in ("tiny.yaml", "corpus", "tokenizer", "workspace"):
            place = shutil.copytree if (packed / name).is_dir() else shutil.copy
            place(packed / name, folder / name)
        jobs = folder / "workspace" / "jobs"
        (jobs / "train" / "000001-3fa9c1d2").mkdir(parents=True)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        jobs.chmod(0o700 if os.geteuid() == 0 else 0)  # without root there is no second user: nobody may look then
        yield folder
        jobs.chmod(0o700)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def colleague(shared: Path, fork: ForkContext, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls a command as another user, in a fork, as that user may not be allowed to read Python's own modules."""

    def call(name: str, *options: str) -> tuple[int, str, str]:
        words = [
            "mistral-pipeline",
            name,
            str(shared / "tiny.yaml"),
            "--workspace",
            str(shared / "workspace"),
            *options,
        ]
        monkeypatch.setattr(sys, "argv", words)
        output, errors = io.StringIO(), io.StringIO()
        with redirect_stdout(output), redirect_stderr(errors), pytest.raises(SystemExit) as end:
            main()
        return end.value.code, output.getvalue(), errors.getvalue()

    def as_nobody(queue, words: tuple[str, ...]) -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        queue.put(call(*words))

    def as_colleague(*words: str) -> tuple[int, str, str]:
        call(*words)  # loads every module
        queue = fork.SimpleQueue()
        child = fork.Process(target=as_nobody, args=(queue, words))
        child.start()
        told: tuple[int, str, str] = queue.get()
        child.join()
        assert "Traceback" not in told[2]
        return told

    return as_colleague


def test_a_colleague_sees_the_runs_and_is_told_that_the_jobs_are_not_visible(shared, colleague):
    folder = Workspace(shared / "workspace").run(RUN)
    acquire(folder, {"kind": "slurm", "job": "12_0", "restart": 0}, lambda _: False)
    for path in [folder.parent, folder, *folder.iterdir()]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    code, output, errors = colleague("status")
    assert (code, errors) == (0, "")
    assert "jobs: not visible" in output
    told = json.loads(colleague("status", "--json")[1])
    assert (told["jobs"], told["jobs_visible"], told["tasks"]) == (None, False, [])
    assert [(run["run"], run["state"], run["reason"]) for run in told["runs"]] == [
        (RUN, "unknown", "its jobs are not visible"),
        ("battlestar-tiny-x49", "unknown", "its jobs are not visible"),
    ]


def test_a_colleague_can_verify(shared, colleague):
    code, output, errors = colleague("verify", "--quick")
    assert (code, errors.count("\n") <= 3) == (0, True), errors
    assert "no problems" in output


def test_a_colleague_is_told_whose_the_logs_are(shared, colleague):
    code, output, errors = colleague("logs")
    assert (code, output) == (1, "")
    jobs = shared / "workspace" / "jobs"
    assert errors.startswith(f"EnvironmentProblem: {jobs}: found that you may not read it, expected its owner, ")
    assert f"its owner, {jobs.owner()}, who alone sees the logs" in errors


@pytest.mark.parametrize("hidden", ["manifest", "manifest/train", "manifest/preprocess", "runs", f"runs/{RUN}", ""])
@pytest.mark.parametrize("command", [("status",), ("verify", "--quick")])
def test_a_folder_that_cannot_be_read_is_named_in_one_line(shared, colleague, hidden, command):
    place = shared / "workspace" / hidden
    (shared / "workspace" / "runs" / RUN).mkdir(parents=True, exist_ok=True)
    (shared / "workspace" / "manifest" / "train" / RUN).mkdir(parents=True, exist_ok=True)
    (shared / "workspace" / "runs" / RUN / "metrics.jsonl").touch()
    former = place.stat().st_mode
    place.chmod(0o700 if os.geteuid() == 0 else 0)
    try:
        code, _, errors = colleague(*command)
    finally:
        place.chmod(former)
    if code == 0:  # verify looks at no run that has no record
        assert (command[0], hidden.partition("/")[0]) == ("verify", "runs")
        return
    assert code == (1 if hidden else 2)  # click looks at the option
    [line] = [line for line in errors.splitlines() if str(place) in line]
    assert "ermission" in line or "not readable" in line
    assert not hidden or line == errors.splitlines()[0]
