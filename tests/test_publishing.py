"""Publishing ends in the recorded revisions, whatever goes wrong on the way, and tells nobody the token."""

import json
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_server import serving
from hub_uploads import OWN, Fault, Handler, Hub, Kill

from mistral import remote
from mistral.config import Experiment, load_experiment
from mistral.errors import ConfigError, EnvironmentProblem, Findings, ManifestError
from mistral.hub import card_config
from mistral.manifest import Manifest, make_record
from mistral.pace import HOUR_SECONDS, Pace
from mistral.progress import Silent
from pipeline.push import push
from pipeline.verify import verify_remote

# huggingface_hub sends large files to httpx2 by the former name of an argument.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_canaryCANARYcanary"
CONFIG = """
name: tiny
seeds: {alias: 21, battlestar: 49}
data: {name: plays, source: {files: ["*.txt"]}, validation_fraction: 0.2}
model: {n_layer: 2, n_head: 2, n_embd: 32, n_positions: 16}
training: {max_steps: 50, global_batch_size: 4, micro_batch_size: 4, precision: fp32, learning_rate: 1.0e-2}
checkpoints: {schedule: [[1, 50]]}
export: {organization: crfm, commits_per_hour: 1000000}
"""
ALIAS, BATTLESTAR = "crfm/alias-tiny-x21", "crfm/battlestar-tiny-x49"


@dataclass
class Exported:
    """A workspace with exported folders of a few bytes each, and the Hub that they go to."""

    experiment: Experiment
    manifest: Manifest
    hub: Hub

    def export(self, seed: str, *steps: int) -> None:
        """Record folders that look like exported ones."""
        run = self.experiment.run_name(seed)
        for step in steps:
            folder = self.manifest.workspace.export(run, step)
            folder.mkdir(parents=True)
            (folder / "config.json").write_text('{"model_type": "gpt2"}')
            (folder / "README.md").write_text(f"# {run}, checkpoint {step}\n")
            (folder / "model.safetensors").write_bytes(random.Random(f"{run} {step}").randbytes(200))
            files = [self.manifest.entry(path) for path in sorted(folder.iterdir())]
            self.manifest.publish(
                make_record(
                    "export/checkpoint", (run, folder.name), config=card_config(self.experiment), inputs={},
                    files=files, facts={"step": step},
                )
            )  # fmt: skip

    def push(self, **options) -> tuple[str, ...]:
        """What was published."""
        return push(self.experiment, self.manifest.workspace, Silent(), **options).pushed

    def problems(self) -> list[str]:
        """What verify finds."""
        return verify_remote(self.experiment, self.manifest.workspace, Silent())

    def expected(self, seed: str, *steps: int) -> dict[str, dict[str, bytes]]:
        """What the Hub must hold."""
        folders = {step: self.manifest.workspace.export(self.experiment.run_name(seed), step) for step in steps}
        files = {s: OWN | {path.name: path.read_bytes() for path in f.iterdir()} for s, f in folders.items()}
        return {f"checkpoint-{step}": files[step] for step in steps} | {"main": files[max(steps)]}


@pytest.fixture
def exported(manifest, tmp_path, monkeypatch):
    """Nothing exported yet, and an empty Hub that this process and its forks talk to; waiting takes no time."""
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    hub = Hub(TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    with serving(hub, Handler) as endpoint:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        yield Exported(load_experiment(str(tmp_path / "tiny.yaml")), manifest, hub)


def test_each_step_has_a_branch_with_its_bytes_and_main_is_the_last_by_number(exported):
    exported.export("alias", 0, 9, 10, 20)
    exported.export("battlestar", 0, 10)
    pushed = exported.push()
    assert exported.hub.files(ALIAS) == exported.expected("alias", 0, 9, 10, 20)
    assert exported.hub.files(BATTLESTAR) == exported.expected("battlestar", 0, 10)
    assert pushed[:5] == tuple(f"{ALIAS}@{name}" for name in [*(f"checkpoint-{n}" for n in (0, 9, 10, 20)), "main"])
    assert exported.hub.made("^POST .*/commit/") == 8
    assert exported.problems() == []
