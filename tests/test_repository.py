"""The promises of the repository itself: configs that load, versions pinned in one place, scripts that stop."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mistral.config import load_cluster, load_experiment

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"[\w\]]=" r"=\d")  # in two parts, so that this line is no pin itself
STRICT = "set -euo pipefail"


def repository_files() -> list[Path]:
    """Every file that is, or is about to be, under version control."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def text_of(path: Path) -> str:
    """The text of a file; empty for pictures and the like."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def is_shell_script(path: Path) -> bool:
    first = text_of(path).partition("\n")[0]
    return path.suffix in (".sh", ".sbatch") or re.match(r"#!.*\b(ba|da)?sh\b", first) is not None


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.y*ml")), ids=lambda path: path.stem)
def test_every_config_loads_under_its_own_name(path):
    load = {"experiments": load_experiment, "clusters": load_cluster}[path.parent.name]
    assert load(str(path)).name == path.stem


def test_versions_are_pinned_in_environments_only():
    pinned = [path for path in repository_files() if PIN.search(text_of(path))]
    assert [path for path in pinned if path.relative_to(ROOT).parts[0] != "environments"] == []
    assert pinned, "the constraints file pins versions"


def test_every_shell_script_stops_at_the_first_failure():
    scripts = [path for path in repository_files() if is_shell_script(path)]
    assert [path for path in scripts if STRICT not in text_of(path).splitlines()] == []
    assert ROOT / ".ci" / "run" in scripts


def test_the_paths_of_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Where things are")[2]
    for row in re.findall(r"^\| (`.*?) \|", table, flags=re.M):
        names = re.findall(r"`([^`]+)`", row)
        folder = names[0].rpartition("/")[0]
        for name in names:
            assert (ROOT / (name if "/" in name else f"{folder}/{name}")).exists(), name


def test_the_commands_of_the_readme_are_ones_that_exist():
    import shlex

    from pipeline.cli import cli

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    mistral-pipeline (.*?)(?:#.*)?$", text, flags=re.M)
    assert len(commands) >= 4
    for line in commands:
        name, *arguments = shlex.split(line)
        cli.commands[name].make_context(name, arguments)
    targets = re.findall(r"^    make (\w+)", text, flags=re.M)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == ["quickstart", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


@pytest.mark.parametrize(
    "command", ["", "run", "preprocess", "train", "export", "status", "verify", "evaluate", "generate"]
)
def test_help_has_an_example_and_loads_nothing_heavy(command):
    code = "import sys; from pipeline.cli import cli\ntry: cli(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'transformers', 'numpy', 'pydantic') if m in sys.modules])"
    line = [sys.executable, "-c", code, *([command] if command else []), "--help"]
    output = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert "Example:" in output
    assert output.endswith("[]\n")
