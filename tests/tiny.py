"""The smallest experiment of two seeds, and a workspace in which it is: what recorded and published runs share."""

from dataclasses import dataclass

from mistral.config import Experiment
from mistral.manifest import Manifest
from mistral.workspace import Workspace


def tiny_config(max_steps: int, every: int, export: str = "{}") -> str:
    """The YAML of an experiment that keeps the weights of each `every` steps."""
    return f"""
name: tiny
seeds: {{alias: 21, battlestar: 49}}
data: {{name: plays, source: {{files: ["*.txt"]}}, validation_fraction: 0.2}}
model: {{n_layer: 2, n_head: 2, n_embd: 32, n_positions: 16}}
training: {{max_steps: {max_steps}, global_batch_size: 4, micro_batch_size: 4, precision: fp32, learning_rate: 1.0e-2}}
checkpoints: {{schedule: [[{every}, {max_steps}]]}}
export: {export}
"""


@dataclass
class Tiny:
    """An experiment and the records of a workspace."""

    experiment: Experiment
    manifest: Manifest

    @property
    def workspace(self) -> Workspace:
        return self.manifest.workspace

    def choose(self, **export) -> None:
        """Change the export section."""
        chosen = self.experiment.export.model_copy(update=export)
        self.experiment = self.experiment.model_copy(update={"export": chosen})
