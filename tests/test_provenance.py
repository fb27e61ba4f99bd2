"""The promises of mistral/provenance.py: a record says who made it, and never with what secrets."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mistral
from mistral import provenance
from mistral.files import canonical_json


def test_made_by_names_software_hardware_and_the_job(monkeypatch):
    for name in provenance.SLURM:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    made_by = provenance.made_by(attempt=2)
    assert made_by["software"]["mistral-pipeline"] == mistral.__version__
    assert set(provenance.DECISIVE) <= set(made_by["software"])
    assert made_by["slurm_job_id"] == "12"
    assert "slurm_restart_count" not in made_by
    assert made_by["attempt"] == 2
    assert made_by["hardware"]
    assert json.loads(canonical_json(made_by)) == made_by


def test_software_holds_no_git_commit():
    """Two runs of one cohort may come from two commits, not from two versions of a package."""
    assert all(re.match(r"^\d", version) for version in provenance.software().values())


def test_tokens_reach_no_record(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert "secret" not in json.dumps(provenance.made_by())


def commit_seen_by(package: Path) -> str:
    command = [sys.executable, "-c", "from mistral import provenance; print(provenance.git_commit())"]
    return subprocess.run(command, cwd=package, capture_output=True, text=True, check=True).stdout.strip()


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_the_commit_is_that_of_this_package_and_says_whether_it_was_edited(tmp_path):
    shutil.copytree(Path(mistral.__file__).parent, tmp_path / "mistral", ignore=shutil.ignore_patterns("__pycache__"))
    assert commit_seen_by(tmp_path) == "None"
    git(tmp_path, "init", "-q")
    (tmp_path / "other").touch()
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    git(tmp_path, "add", "other", ".gitignore")
    git(tmp_path, "commit", "-qm", "somebody's own repository, with this package installed in it")
    assert commit_seen_by(tmp_path) == "None"
    git(tmp_path, "add", "mistral")
    git(tmp_path, "commit", "-qm", "now it is part of it")
    assert re.fullmatch(r"[0-9a-f]{40}", commit_seen_by(tmp_path))
    (tmp_path / "mistral" / "errors.py").write_text("")
    assert re.fullmatch(r"[0-9a-f]{40}\+changes", commit_seen_by(tmp_path))
