"""numbers -> a workspace with that many records and jobs, and commands that stand in for Slurm's.

What `scale.py` times, and whose file system operations a test counts. The records are what `Manifest.find` accepts; the
files that they name are not there, and the corpus is of sparse files.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mistral.cohort import begin_facts
from mistral.config import Experiment, load_experiment, to_yaml
from mistral.corpus import plan_units
from mistral.files import canonical_json
from mistral.manifest import FileEntry, Manifest, Record, make_record
from mistral.workspace import Workspace, step_name

MEGABYTE = 1_000_000
LOGGED_EVERY = 50
MISTRAL = "[[10, 100], [50, 2000], [100, 20000], [1000, 400000]]"  # 609 checkpoints
SEEDS = ("alias", "battlestar", "caprica", "darkmatter", "expanse", "fear", "gravity", "hive", "iris", "jade")
EXPERIMENT = """
name: large
seeds: {{{seeds}}}
data: {{name: web, source: {{files: ["corpus/*.jsonl"]}}, unit_megabytes: 1, validation_fraction: 0.0005}}
model: {{n_layer: 12, n_head: 12, n_embd: 768, n_positions: 1024}}
training: {{max_steps: 400000, global_batch_size: 512, micro_batch_size: 8, precision: bf16, learning_rate: 6.0e-4,
           warmup_steps: 4000, logging_steps: 50}}
checkpoints: {{schedule: {schedule}}}
"""
CLUSTER = """
name: large-cluster
executor: slurm
stages:
  preprocess: {{tasks: {tasks}, array_width: 80}}
  train: {{ranks_per_node: 8, gpus_per_node: 8}}
  export: {{tasks: 80, array_width: 80}}
"""
# Each notes that it was called. Jobs that were submitted wait in a file.
COMMANDS = {
    "sbatch": """
        number=$(($(cat "$state/number" 2> /dev/null || echo 16) + 1))
        echo $number > "$state/number"
        comment=$(sed -n 's/^#SBATCH --comment=//p' "$1")
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
        if [ -n "$last" ]; then
            seq -f "${number}_%.0f|PENDING|Priority|$comment" 0 "$last" >> "$state/queue"
        else
            echo "$number|PENDING|Priority|$comment" >> "$state/queue"
        fi
        echo "Submitted batch job $number"
    """,
    "squeue": 'test ! -e "$state/queue" || cat "$state/queue"',
    "sacct": 'test ! -e "$state/ended" || cat "$state/ended"',
    "scontrol": 'echo "MaxArraySize            = 1001"',
    "scancel": "true",
    "srun": "true",
}


@dataclass(frozen=True)
class Large:
    """An experiment, its workspace, and where jobs can be submitted to."""

    folder: Path
    experiment: Experiment

    @property
    def workspace(self) -> Workspace:
        """Where all records are."""
        return Workspace(self.folder / "workspace")

    @property
    def state(self) -> Path:
        """Where the commands in Slurm's place keep the queue, and note their calls."""
        return self.folder / "slurm"

    def environment(self) -> dict[str, str]:
        """That of a process which finds these commands."""
        return {**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}

    def cluster(self, tasks: int) -> str:
        """A cluster file with so many tasks of preprocess, and 80 of export."""
        path = self.folder / f"tasks{tasks}.yaml"
        path.write_text(CLUSTER.format(tasks=tasks), encoding="utf-8")
        return str(path)


def lay_out(folder: Path, *, seeds: int = 10, units: int = 5000, schedule: str = MISTRAL) -> Large:
    """An experiment with a corpus of so many units, nothing recorded, and the commands."""
    named = ", ".join(f"{name}: {21 + number}" for number, name in enumerate(SEEDS[:seeds]))
    (folder / "corpus").mkdir(parents=True)
    for number in range(units):
        with (folder / "corpus" / f"part-{number:05d}.jsonl").open("wb") as file:
            file.truncate(MEGABYTE)
    (folder / "large.yaml").write_text(EXPERIMENT.format(seeds=named, schedule=schedule), encoding="utf-8")
    large = Large(folder, load_experiment(str(folder / "large.yaml")))
    large.state.mkdir()
    (folder / "bin").mkdir()
    for name, text in COMMANDS.items():
        path = folder / "bin" / name
        path.write_text(f'#!/bin/sh\nstate="{large.state}"\necho {name} >> "$state/calls"\n{text}\n', encoding="utf-8")
        path.chmod(0o755)
    return large


def record_all(large: Large, *, complete: int = 3) -> None:
    """Record all units, all checkpoints and all exports, and the end of the first runs."""
    manifest = Manifest(large.workspace)
    seal = record_dataset(large.experiment, manifest)
    for number, seed in enumerate(large.experiment.seeds):
        for record in records_of_run(large.experiment, seed, seal, whole=number < complete):
            write(manifest, record)
        run = large.experiment.run_name(seed)
        path = large.workspace.metrics(run)
        path.parent.mkdir(parents=True)
        path.write_text("".join(metrics(large.experiment.training.max_steps)), encoding="utf-8")
        owner = {"kind": "slurm", "job": f"{1000 + number}_{number}", "restart": 1}
        (path.parent / "lease-00000001").write_bytes(canonical_json(owner))


def record_dataset(experiment: Experiment, manifest: Manifest) -> Record:
    """Record all units, and the seal."""
    dataset, inputs = experiment.data.dataset_name(), {}
    for unit in plan_units(experiment, manifest.workspace.sources()).units:
        shard = f"data/{dataset}/train/{unit.name}.h5"
        splits = {
            "train": {"documents": 900, "tokens": 220_000, "text_bytes": MEGABYTE, "longest": [9000], "offset": 2048}
        }
        record = make_record(
            "preprocess/unit", (dataset, unit.name), config=unit.digest(experiment.data.identity()), inputs={},
            files=[FileEntry(shard, 442_048, unit.digest({}))], facts={"splits": splits},
        )  # fmt: skip
        inputs[unit.name] = write(manifest, record).content
    seal = make_record("preprocess/dataset", (dataset, "dataset"), config="c", inputs=inputs, files=[], facts={})
    return write(manifest, seal)


def records_of_run(experiment: Experiment, seed: str, seal: Record, *, whole: bool) -> Iterator[Record]:
    """What training and export record of one run."""
    run, steps = experiment.run_name(seed), experiment.scheduled_steps()
    facts = begin_facts(experiment, seed, seal.content, {"world_size": 8})
    yield make_record(
        "train/begin", (run, "begin"), config="c", inputs={"dataset": seal.content}, files=[], facts=facts
    )
    parent = seal.content
    for step in steps:
        files = [FileEntry(f"runs/{run}/checkpoints/{step_name(step)}/model.safetensors", 497_774_208, parent)]
        weights = make_record(
            "train/weights", (run, "weights", step_name(step)), config="c", inputs={"parent": parent}, files=files,
            facts={"step": step, "tokens": step * 524_288},
        )  # fmt: skip
        parent = weights.content
        yield weights
        files = [FileEntry(f"exports/{run}/checkpoint-{step}/model.safetensors", 497_774_208, parent)]
        key = (run, f"checkpoint-{step}")
        yield make_record("export/checkpoint", key, config="c", inputs={"weights": parent}, files=files, facts={})
    for step in steps[-2:]:
        key, inputs = (run, "state", step_name(step)), {"weights": parent}
        yield make_record("train/state", key, config="c", inputs=inputs, files=[], facts={"step": step})
    if whole:
        facts = {"steps": steps[-1], "promise": "same bits"}
        yield make_record("train/complete", (run, "complete"), config="c", inputs={}, files=[], facts=facts)


def metrics(max_steps: int) -> Iterator[str]:
    """The lines of a run's metrics, as long as real ones."""
    timing = {"seconds": 0.734, "tokens_per_second": 714_288.1, "data_wait_seconds": 0.0004, "mfu": 0.3312}
    rest = json.dumps(
        {"timing": timing, "memory": {"allocated_bytes": 41_232_384_000, "reserved_bytes": 52_613_349_376}}
    )
    for step in range(LOGGED_EVERY, max_steps + 1, LOGGED_EVERY):
        line = f'"step": {step}, "loss": {3 + 400 / step:.6f}, "learning_rate": 0.0006, "grad_norm": 0.4121'
        yield f'{{{line}, "tokens": {step * 524_288}, {rest[1:]}\n'


def leave_jobs(large: Large, *, submissions: int = 200, tasks: int = 5000) -> None:
    """Leave the traces of many submissions: arrays of 1,001 tasks, and one of all runs at a time; all have ended."""
    runs = [large.experiment.run_name(seed) for seed in large.experiment.seeds]
    for number, start in enumerate(range(0, tasks, 1001), start=1):
        some = range(start, min(start + 1001, tasks))
        _leave(large, "preprocess", number, [(task, f"task {task} of {tasks}") for task in some], {"0000.begin": {}})
    begins = [{"progress": f"{number}: 0:"} for number in range(3)]
    end = {"code": 75, "reason": "Stopped: stopped at step 7 with its state saved", "signals": ["SIGUSR2"]}
    attempts = {
        "0000.begin": begins[0],
        "0000.end": end | begins[1],
        "0001.begin": begins[1],
        "0001.end": end | begins[2],
    }
    for number in range(1, submissions + 1):
        _leave(large, "train", number, list(enumerate(runs)), attempts)


def _leave(large: Large, stage: str, number: int, units: list[tuple[int, str]], attempts: dict[str, Any]) -> None:
    jobs = large.workspace.root / "jobs"
    job = f"{STAGE_JOBS[stage] + number}"
    folder = jobs / stage / f"{number:06d}-{int(job):08x}"
    folder.mkdir(parents=True)
    tasks, names = zip(*units, strict=True)
    told = {"stage": stage, "experiment": "large", "tasks": tasks, "names": names, "flags": [], "planned": None}
    (folder / "submission.json").write_bytes(canonical_json(told))
    (folder / "experiment.yaml").write_text(to_yaml(large.experiment), encoding="utf-8")
    (folder / "job.json").write_bytes(canonical_json({"job": job}))
    for index in range(len(units)):
        place = jobs / "attempts" / (f"{job}_{index}" if len(units) > 1 else job)
        place.mkdir(parents=True)
        for name, content in attempts.items():
            (place / name).write_bytes(canonical_json(content))


STAGE_JOBS = {"preprocess": 100, "train": 1000}


def write(manifest: Manifest, record: Record) -> Record:
    """Put a record into its place, without waiting for the disk."""
    path = manifest.path(record.kind.partition("/")[0], record.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(canonical_json(record.body()) + b"\n")
    return record
