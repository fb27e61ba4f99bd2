"""Commands that answer as Slurm's do, from files: what was submitted waits in one, and a test edits it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mistral.errors import MistralError
from pipeline.cli import cli

COMMANDS = {
    "sbatch": """
        number=$(($(cat number 2> /dev/null || echo 10) + 1))
        echo $number > number
        if [ -e refuse-$number ]; then cat refuse-$number >&2; exit 1; fi
        cp "$1" script-$number
        comment=$(sed -n 's/^#SBATCH --comment=//p' "$1")
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
        for index in $(seq 0 ${last:-0}); do
            echo "$number${last:+_$index}|PENDING|Priority|$comment" >> queue
        done
        echo "Submitted batch job $number"
    """,
    "squeue": "cat queue",
    "scontrol": """
        if [ "$1" = release ]; then sed -i "s/^$2|\\([A-Z]*\\)|[^|]*/$2|\\1|Priority/" queue; fi
        echo "MaxArraySize            = ${MAX_ARRAY_SIZE:-1001}"
    """,
    "scancel": """
        for label in "$@"; do sed -i "/^$label[_|]/d" queue; done
    """,
    "srun": "true",
}
CLUSTER = """
name: fake
executor: slurm
account: physics
setup: ["ulimit -c 0"]
stages:
  preprocess: {tasks: 2}
  train: {array_width: 2}
  export: {tasks: 2}
"""


@dataclass(frozen=True)
class FakeSlurm:
    """The commands' state, and an empty workspace for the small experiment."""

    folder: Path
    experiment: Path
    workspace: Path
    cluster: Path

    def call(self, name: str, *arguments: str) -> Result:
        """The command line, in this process."""
        line = [name, str(self.experiment), "--workspace", str(self.workspace), *arguments]
        if name not in ("status", "cancel", "logs"):
            line += ["--cluster", str(self.cluster)]
        return CliRunner().invoke(cli, line)

    def lines(self, name: str, *arguments: str) -> list[str]:
        """What a command that ends well prints of its jobs: `train: submitted job 11 (alias-tiny-x21)`."""
        result = self.call(name, *arguments)
        assert result.exception is None, result.exception
        return [line.partition(", logs in ")[0] for line in result.stdout.splitlines() if " job" in line]

    def refusal(self, name: str, *arguments: str) -> str:
        """The message of a command that fails."""
        result = self.call(name, *arguments)
        assert isinstance(result.exception, MistralError), result.exception or result.output
        return str(result.exception)

    def queue(self) -> list[str]:
        """The lines of squeue."""
        return (self.folder / "queue").read_text().splitlines()

    def change(self, edit: Callable[[str], str]) -> None:
        """Let the queue change."""
        (self.folder / "queue").write_text(edit((self.folder / "queue").read_text()))

    def dependency(self, job: int) -> str:
        """What a job waits for."""
        lines = (self.folder / f"script-{job}").read_text().splitlines()
        return next((line.partition("=")[2] for line in lines if "--dependency" in line), "")

    def edit(self, path: Path, old: str, new: str) -> None:
        """Change the experiment or the cluster file."""
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture
def slurm(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Commands on the PATH, and what they work on."""
    for name in ("bin", "slurm"):
        (tmp_path / name).mkdir()
    for name, text in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\ncd {tmp_path / 'slurm'}\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
    (tmp_path / "slurm" / "queue").touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in ("corpus", "tokenizer"):
        (tmp_path / name).symlink_to(packed / name)
    (tmp_path / "tiny.yaml").write_bytes((packed / "tiny.yaml").read_bytes())
    (tmp_path / "cluster.yaml").write_text(CLUSTER, encoding="utf-8")
    return FakeSlurm(tmp_path / "slurm", tmp_path / "tiny.yaml", tmp_path / "ws", tmp_path / "cluster.yaml")
