"""Runs that are recorded as training records them, without the training: what export, verify and status start from."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny import Tiny, tiny_config

from mistral.checkpoints import Checkpoints
from mistral.cohort import begin, begin_facts
from mistral.lease import acquire
from mistral.manifest import Manifest, Record, make_record
from mistral.model import build_model, gpt2_config
from mistral.progress import Silent
from pipeline.export import ExportSummary, export

VOCABULARY, END_OF_TEXT = 512, 0
STEPS = (0, 2, 4)
PREFIX = 8  # tokens of the beginning of the probe
CONFIG = tiny_config(max_steps=4, every=2)


@dataclass
class Trained(Tiny):
    """A workspace with a sealed dataset, in which runs can be recorded as training records them."""

    dataset: Record
    records_prefix: bool = True  # as training does; earlier records have none

    def export(self, **options) -> ExportSummary:
        return export(self.experiment, self.workspace, Silent(), **options)

    def train(
        self, seed: str, steps=STEPS, probe_error: dict[int, float] | None = None, drift: str | None = None
    ) -> str:
        run, seeds = self.experiment.run_name(seed), self.experiment.seeds[seed]
        facts = begin_facts(self.experiment, seed, self.dataset.content, {"threads": 1})
        begun = begin(self.manifest, run, facts, allow_drift=False)
        lease = acquire(self.workspace.run(run), {"kind": "local", "host": "node7", "pid": 4711}, lambda _: False)
        config = gpt2_config(self.experiment.model, VOCABULARY, END_OF_TEXT)
        network = build_model(self.experiment.model, config, seeds.init).eval()
        sequences = torch.arange(32).reshape(2, 16)
        dataset = self.dataset.content
        with Checkpoints(self.manifest, run, begun.config, dataset, lease, drift=drift) as checkpoints:
            for step in steps:
                with torch.no_grad():
                    network.transformer.wte.weight.add_(0.01 * step)
                    loss = float(network(input_ids=sequences, labels=sequences).loss)
                    prefix = float(network(input_ids=sequences[:1, :PREFIX], labels=sequences[:1, :PREFIX]).loss)
                wrong = 1 + (probe_error or {}).get(step, 0.0)
                weights = {name: value.detach().clone() for name, value in network.named_parameters()}
                probe = {"loss": loss * wrong, "sequences": sequences.tolist()}
                probe |= {"prefix": {"tokens": PREFIX, "loss": prefix * wrong}} if self.records_prefix else {}
                facts = {"step": step, "tokens": 64 * step, "probe": probe}
                checkpoints.save_weights(step, weights, config.to_json_string(use_diff=False), facts)
            parameters = {f"param/{name}": value for name, value in weights.items()}
            checkpoints.save_state(steps[-1], parameters, {"updates": steps[-1], "loss_scale": {}})
            checkpoints.wait()
        if steps[-1] == self.experiment.training.max_steps:
            self.complete(run, begun, steps[-1])
        lease.release()
        return run

    def complete(self, run: str, begun: Record, step: int) -> None:
        weights = self.manifest.get("train", (run, "weights", f"step-{step:08d}"), "")
        lines = [
            {"step": n, "loss": 6.0 - n / 10, "tokens": 64 * n, "timing": {"tokens_per_second": 128.0}}
            for n in range(1, step + 1)
        ]
        lines.append({"step": step, "evaluation": {"validation": {"loss": 5.5, "perplexity": 244.69}}})
        self.workspace.metrics(run).write_text("".join(json.dumps(line) + "\n" for line in lines))
        record = make_record(
            "train/complete", (run, "complete"), config=begun.config, inputs={"weights": weights.content}, files=[],
            facts={"steps": step, "promise": "same bits"},
        )  # fmt: skip
        self.manifest.publish(record)


def seal_dataset(manifest: Manifest, dataset: str, tokenizer: Path) -> Record:
    shard = manifest.workspace.shard(dataset, "train", "00000")
    shard.parent.mkdir(parents=True)
    shard.write_bytes(bytes(range(256)) * 8)
    key = (dataset, "00000")
    unit = make_record("preprocess/unit", key, config="c", inputs={}, files=[manifest.entry(shard)], facts={})
    manifest.publish(unit)
    folder = manifest.workspace.tokenizer(dataset)
    shutil.copytree(tokenizer, folder)
    totals = {"documents": 3, "tokens": 1024, "text_bytes": 4096, "units": [["00000", 1024]]}
    facts = {
        "vocabulary_size": VOCABULARY, "end_of_text_id": END_OF_TEXT, "tokenizer_sha256": "t",
        "splits": {"train": totals, "validation": totals}, "skipped": {},
    }  # fmt: skip
    files = [manifest.entry(path) for path in sorted(folder.iterdir())]
    seal = make_record(
        "preprocess/dataset", (dataset, "dataset"), config="c", inputs={"00000": unit.content}, files=files, facts=facts
    )
    return manifest.publish(seal)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
