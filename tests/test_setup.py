"""The lines of `setup` in the batch script: the first that fails ends the attempt and is its reason; bash runs them."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mistral.config import load_cluster, load_experiment
from mistral.progress import Silent
from mistral.workspace import Workspace
from pipeline.context import Context
from slurm import script
from slurm.history import past_of
from slurm.submissions import Submission

RUN = "alias-tiny-x21"


@dataclasses.dataclass
class Ended:
    """How a batch script ended."""

    code: int
    output: str
    called: list[str]  # srun, and commands of Slurm
    workspace: Workspace

    def reason(self, label: str = "12_0") -> str:
        """The reason of its last attempt, as `status` reads it; empty if it left none."""
        return past_of(self.workspace, label, label).reason

    def told(self, line: str, code: int, label: str = "12_0") -> None:
        """Check that it ended with this line as its reason, before anything was started."""
        past = past_of(self.workspace, label, label)
        assert past.reason.splitlines()[0] == f"EnvironmentProblem: setup failed: exit code {code} of: {line}"
        assert past.reason.endswith("run the same command again")
        assert (past.code, self.code) == (1, 1)
        assert f"setup failed: exit code {code} of: {line}" in self.output
        assert not [words for words in self.called if words.startswith("srun")]


@pytest.fixture
def batch(tmp_path: Path) -> Callable[..., Ended]:
    """Runs the batch script of a task with these lines of setup; srun and scancel only note that they were called."""
    for name in ("srun", "scancel"):
        path = tmp_path / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/called\n')
        path.chmod(0o755)
    workspace, experiment = Workspace(tmp_path / "ws"), load_experiment("quickstart")
    folder = workspace.root / "jobs" / "train" / "000001-aa"

    def run(*setup: str, python: str | None = None, links: int = 1, **variables: str) -> Ended:
        cluster = load_cluster("slurm-a100").model_copy(update={"setup": setup, "python": python})
        submission = Submission(folder, "train", "tiny", (0,), (RUN,), (), links=links)
        path = tmp_path / "slurm_script"
        path.write_text(script.text_of(Context(experiment, cluster, workspace, Silent()), submission, []))
        known = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "15", "SLURM_JOB_NAME": "the-chain"}
        known |= {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0"} if links == 1 else {}
        (tmp_path / "called").write_text("")
        environment = {**known, **variables}
        done = subprocess.run(
            ["bash", path], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        called = (tmp_path / "called").read_text().splitlines()
        return Ended(done.returncode, done.stdout + done.stderr, called, workspace)

    return run


@pytest.mark.parametrize(
    ("lines", "failed", "code"),
    [
        (["module load cuda/99"], "module load cuda/99", 127),
        (["true", "source /missing/bin/activate", "true"], "source /missing/bin/activate", 1),
        (["export A=1", "exit 3"], "exit 3", 3),
        (["echo 'true; exit 4' > sourced", "source ./sourced"], "source ./sourced", 4),
        (["echo 'false; return 4' > sourced", "source ./sourced"], "source ./sourced", 4),
        (["set -u", "echo $UNSET"], "echo $UNSET", 1),
        (["if true; then", "  ls /missing", "fi"], "ls /missing", 2),
        (["true\nls /missing\ntrue"], "ls /missing", 2),
        (["load() { return 5; }", 'load "a\\b"\t# tab'], 'load "a\\b" # tab', 5),
        (["false # ü ' $HOME `x`"], "false # ü ' $HOME `x`", 1),
        (["set -euo pipefail", "false | true"], "false | true", 1),
        (["export PATH=/nowhere", "module load"], "module load", 127),
    ],
)
def test_the_first_line_that_fails_is_the_reason_and_nothing_is_started(batch, lines, failed, code):
    ended = batch(*lines)
    log = ended.output.replace("\t", " ")
    dataclasses.replace(ended, output=log).told(failed, code)


@pytest.mark.parametrize(
    "lines",
    [
        ["false || true", "! true", "if false; then", "exit 1", "fi"],
        ["probe() { false; true; }", "probe"],  # as the functions `module` and `conda` do
        ["echo 'false; true' > sourced", "source ./sourced"],
        ["cat <<END", "false", "END", "echo a \\", "  b"],
        ["set -e"],
        ["for name in a b; do", "  echo $name", "done"],
    ],
)
def test_lines_that_end_well_go_on_to_the_task(batch, lines):
    ended = batch(*lines)
    assert [words.split()[0] for words in ended.called] == ["srun"]
    assert (ended.code, ended.reason()) == (0, "")


def test_a_python_that_does_not_start_is_the_reason(batch):
    batch(python="/missing/python").told('/missing/python -c "import pipeline.cli"', 127)


def test_a_python_without_this_program_is_the_reason(batch):
    batch(python=f"{sys.executable} -I -S").told(f'{sys.executable} -I -S -c "import pipeline.cli"', 1)


def test_each_attempt_has_a_reason_of_its_own(batch):
    old = batch("true").workspace.root / "jobs" / "attempts" / "12_0"
    old.mkdir(parents=True)
    (old / "0007.end").write_text("{}")  # of a job of the same number, on a cluster that began to count again
    batch("false").told("false", 1)
    assert [path.name for path in old.iterdir()] == ["0000.end"]
    batch("false # again", SLURM_RESTART_COUNT="2").told("false # again", 1)
    assert sorted(path.name for path in old.iterdir()) == ["0000.end", "0002.end"]
    assert oct((old.parent).stat().st_mode)[-3:] == "700"


def test_a_chain_whose_setup_fails_takes_its_other_jobs_out_of_the_queue(batch):
    ended = batch("false", links=3)
    ended.told("false", 1, label="000001-aa")
    assert ended.called == ["scancel --state=PENDING --name=the-chain"]


def test_a_setup_that_is_cancelled_has_not_failed(batch):
    ended = batch("kill -TERM $$", "sleep 60")
    assert (ended.code, ended.reason(), ended.called) == (143, "", [])


def test_a_stop_file_is_json_of_the_form_that_attempts_leave(batch):
    folder = batch("false").workspace.root / "jobs" / "attempts" / "12_0"
    assert json.loads((folder / "0000.end").read_bytes()).keys() == {"code", "reason", "signals"}
