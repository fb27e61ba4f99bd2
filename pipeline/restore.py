"""checkpoints that lost their record -> the record again, where later records prove the files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mistral.config import Experiment
from mistral.errors import Findings
from mistral.manifest import Manifest
from mistral.numbers import counted
from mistral.workspace import Workspace, step_number


@dataclass(frozen=True)
class RestoreSummary:
    """Checkpoints by `run/step-00001000`: recorded again, and those that no later record proves."""

    restored: tuple[str, ...]
    unproven: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def as_text(self) -> str:
        """For people."""
        if not self.restored and not self.unproven:
            return "every scheduled step that was passed is recorded"
        lines = [f"{name}: recorded again; later records prove its files" for name in self.restored]
        return "\n".join([*lines, *(f"{name}: no later record proves its files" for name in self.unproven)])


def restore(experiment: Experiment, workspace: Workspace, seeds: Sequence[str]) -> RestoreSummary:
    """Record scheduled weights again whose record is gone, where their files are those that later records name.

    Args:
        experiment: what was trained.
        workspace: where it lies.
        seeds: names of seeds; all unless given.

    Raises:
        StorageError: a file cannot be read.
        ManifestError: another record is damaged.
    """
    manifest = Manifest(workspace)
    restored, unproven = list[str](), list[str]()
    for seed in experiment.choose_seeds(seeds):
        run = experiment.run_name(seed)
        steps = absent_steps(experiment, manifest, run)
        if not steps:
            continue
        from mistral.restore import proven
        from mistral.restore import restore as record_again

        records = proven(manifest, run, steps)
        for record in records:
            record_again(manifest, run, record)
        again = {step_number(record.key[-1]) for record in records}
        restored += [f"{run}/{record.key[-1]}" for record in records]
        unproven += [f"{run}/step-{step:08d}" for step in steps if step not in again]
    return RestoreSummary(tuple(restored), tuple(unproven))


def absent_steps(experiment: Experiment, manifest: Manifest, run: str) -> list[int]:
    """The scheduled steps that a run has passed and whose weights have no record."""
    recorded = {step_number(name) for name in manifest.names("train", (run, "weights"))}
    states = {step_number(name) for name in manifest.names("train", (run, "state"))}
    reached = max(recorded | states, default=-1)
    return [step for step in experiment.scheduled_steps() if step <= reached and step not in recorded]


def refuse_unproven(summary: RestoreSummary) -> None:
    """Tell what could not be recorded again.

    Raises:
        Findings: some checkpoints could not.
    """
    if summary.unproven:
        raise Findings(
            f"found {counted(len(summary.unproven), 'checkpoints')} whose files no later record proves, expected none\n"
            "  restore their records and folders from a copy, or let train make these steps again: "
            "--from-earlier-state or --from-step-0"
        )
