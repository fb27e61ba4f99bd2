"""Exported folders of a few bytes each, and a Hub on loopback that they are published to."""

import random
from dataclasses import dataclass
from pathlib import Path

from hub_uploads import OWN, Hub
from tiny import Tiny, tiny_config

from mistral.hub import card_config
from mistral.manifest import make_record
from mistral.progress import Silent
from pipeline.push import push
from pipeline.verify import verify_remote

TOKEN = "hf_canaryCANARYcanary"
CONFIG = tiny_config(max_steps=50, every=1, export="{organization: crfm, commits_per_hour: 1000000}")
ALIAS, BATTLESTAR = "crfm/alias-tiny-x21", "crfm/battlestar-tiny-x49"


@dataclass
class Exported(Tiny):
    """A workspace with exported folders of a few bytes each, and the Hub that they go to."""

    hub: Hub

    def export(self, seed: str, *steps: int) -> None:
        """Record folders that look like exported ones."""
        run = self.experiment.run_name(seed)
        for step in steps:
            folder = self.workspace.export(run, step)
            folder.mkdir(parents=True)
            (folder / "config.json").write_text('{"model_type": "gpt2"}')
            (folder / "README.md").write_text(f"# {run}, checkpoint {step}\n")
            (folder / "model.safetensors").write_bytes(random.Random(f"{run} {step}").randbytes(200))
            self.record(folder, step)

    def record(self, folder: Path, step: int) -> None:
        """Record a folder as the export of a step."""
        files = [self.manifest.entry(path) for path in sorted(folder.iterdir())]
        self.manifest.publish(
            make_record(
                "export/checkpoint", (folder.parent.name, folder.name), config=card_config(self.experiment), inputs={},
                files=files, facts={"step": step},
            )
        )  # fmt: skip

    def push(self, **options) -> tuple[str, ...]:
        """What was published."""
        return push(self.experiment, self.workspace, Silent(), **options).pushed

    def problems(self) -> list[str]:
        """What verify finds."""
        return verify_remote(self.experiment, self.workspace, Silent())

    def expected(self, seed: str, *steps: int) -> dict[str, dict[str, bytes]]:
        """What the Hub must hold."""
        folders = {step: self.workspace.export(self.experiment.run_name(seed), step) for step in steps}
        files = {s: OWN | {path.name: path.read_bytes() for path in f.iterdir()} for s, f in folders.items()}
        return {f"checkpoint-{step}": files[step] for step in steps} | {"main": files[max(steps)]}
