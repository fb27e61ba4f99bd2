"""what every command works on: the experiment, the cluster, the workspace, and where progress goes."""

from dataclasses import dataclass

from mistral.config import Cluster, Experiment
from mistral.manifest import Manifest
from mistral.progress import Progress
from mistral.workspace import Workspace


@dataclass(frozen=True)
class Context:
    """The common part of a command's arguments.

    `task_arguments` is the command line of one task of the stage, to which `--task N` is added; `wait` says that jobs
    are followed to their end.
    """

    experiment: Experiment
    cluster: Cluster
    workspace: Workspace
    progress: Progress
    task_arguments: tuple[str, ...] = ()
    wait: bool = False

    @property
    def manifest(self) -> Manifest:
        """The records of the workspace."""
        return Manifest(self.workspace)
