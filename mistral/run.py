"""experiment, seed, dataset, ranks -> one run: its name, its numerics, its streams, and the record of its end."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from mistral.batches import require_sequences
from mistral.config import Experiment, to_yaml
from mistral.dataset import open_split
from mistral.drift import drift_of, promise
from mistral.files import write_bytes
from mistral.manifest import Manifest, Record, make_record
from mistral.metrics import metrics_digest, read_metrics, tokens_per_second
from mistral.provenance import hardware
from mistral.ranks import Ranks
from mistral.shards import TokenStream
from mistral.workspace import step_name


@dataclass(frozen=True)
class Run:
    """What one run is made of; the same on every rank."""

    experiment: Experiment
    seed: str
    manifest: Manifest
    dataset: Record
    ranks: Ranks
    threads: int
    device: torch.device

    @property
    def name(self) -> str:
        """`alias-gpt2-small-x21`."""
        return self.experiment.run_name(self.seed)

    def numerics(self) -> dict[str, Any]:
        """What decides the bits besides config, data and software."""
        return {
            "world_size": self.ranks.world_size,
            "zero_stage": self.experiment.training.zero_stage,
            "threads": self.threads,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else hardware(),
            "deterministic": self.experiment.training.deterministic,
        }

    @cached_property
    def streams(self) -> dict[str, TokenStream]:
        """The sequences of each split that the experiment has; shards are checked when this is first asked for.

        Raises:
            ManifestError: a shard changed since it was recorded.
            DataError: a split holds no whole sequence.
        """
        splits = ("train", "validation") if self.experiment.data.has_validation() else ("train",)
        return {split: self._open(split) for split in splits}

    def check_dataset(self) -> None:
        """Refuse a damaged or empty dataset; comes before anything of the run is written. Raises as `streams` does."""
        _ = self.streams

    def _open(self, split: str) -> TokenStream:
        stream: TokenStream = open_split(self.manifest.workspace, self.dataset, split, self.experiment.seq_len)
        require_sequences(stream, split, self.dataset.key[0])
        return stream


def complete(run: Run) -> None:
    """Record that the run has reached its last step, when everything else of it is recorded."""
    manifest, last = run.manifest, step_name(run.experiment.training.max_steps)
    weights = manifest.get("train", (run.name, "weights", last), "run train again")
    begun = manifest.get("train", (run.name, "begin"), "run train again")
    facts, inputs = summary(run, begun, weights), {"weights": weights.content}
    manifest.publish(
        make_record("train/complete", (run.name, "complete"), config=begun.config, inputs=inputs, files=[], facts=facts)
    )


def summary(run: Run, begun: Record, weights: Record) -> dict[str, Any]:
    """The last losses of a run, its throughput, and the promise it can claim, from its metrics and records."""
    lines = list(read_metrics(run.manifest.workspace.metrics(run.name)))
    steps = [line for line in lines if "loss" in line]
    evaluations = [line["evaluation"]["validation"] for line in lines if "validation" in line.get("evaluation", {})]
    validation = evaluations[-1] if evaluations else {}
    rates = sorted(rate for line in steps if (rate := tokens_per_second(line)) is not None)
    return {
        "steps": run.experiment.training.max_steps,
        "train_loss": steps[-1]["loss"] if steps else None,
        "validation_loss": validation.get("loss"),
        "perplexity": validation.get("perplexity"),
        "tokens_per_second": rates[len(rates) // 2] if rates else None,
        "promise": promise(begun, drift_of(run.manifest, weights)),
        "metrics": metrics_digest(lines),
    }


def write_config(run: Run) -> None:
    """Keep the resolved config beside the run, for people; records hold what counts."""
    path = run.manifest.workspace.run(run.name) / "config.yaml"
    data = to_yaml(run.experiment).encode("utf-8")
    if not path.exists() or path.read_bytes() != data:
        write_bytes(path, data)
