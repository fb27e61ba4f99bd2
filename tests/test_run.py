"""A run knows its name, what decides its bits, and its streams; its end is recorded last and says what it promises."""

import dataclasses
import json

import pytest
import yaml

from mistral import provenance
from mistral.cohort import begin, begin_facts
from mistral.drift import record_drift
from mistral.errors import DataError, ManifestError
from mistral.manifest import make_record
from mistral.metrics import metrics_digest, read_metrics
from mistral.ranks import Ranks
from mistral.run import Run, complete, write_config
from mistral.workspace import step_name


def publish(run: Run, kind: str, step: int, **inputs: str) -> None:
    key = (run.name, kind, step_name(step))
    run.manifest.publish(make_record(f"train/{kind}", key, config="c", inputs=inputs, files=[], facts={"step": step}))


def finish(run: Run, **inputs: str) -> None:
    """What training leaves before it records the end."""
    begin(run.manifest, run.name, begin_facts(run.experiment, run.seed, "d", run.numerics()), allow_drift=False)
    publish(run, "weights", 12, **inputs)
    lines = [
        {"step": step, "loss": 6.0 - step, "timing": {"tokens_per_second": rate}}
        for step, rate in ((1, 5.0), (2, 100.0), (3, 110.0))
    ]
    lines.insert(2, {"step": 2, "evaluation": {"validation": {"loss": 2.0, "perplexity": 7.4}}})
    path = run.manifest.workspace.metrics(run.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_numerics_name_all_that_decides_the_bits(make_run):
    run = make_run("training.zero_stage=2")
    assert run.name == "alias-tiny-x21"
    assert run.numerics() == {
        "world_size": 1, "zero_stage": 2, "threads": 1, "device": provenance.hardware(), "deterministic": True,
    }  # fmt: skip
    other = dataclasses.replace(run, ranks=Ranks(1, 1, 4), threads=2)
    assert (other.numerics()["world_size"], other.numerics()["threads"]) == (4, 2)


def test_streams_are_those_of_the_splits_that_the_experiment_has(make_run):
    run = make_run()
    assert set(run.streams) == {"train", "validation"}
    assert run.streams is run.streams, "shards are hashed once"
    assert run.streams["train"].seq_len == 32
    assert len(run.streams["train"]) > len(run.streams["validation"]) > 0


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_damaged_shard_of_any_split_is_named(make_run, split):
    run = make_run()
    path = run.manifest.workspace.shard(run.dataset.key[0], split, "00000")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ManifestError, match=rf"{split}/00000.h5: found sha256(.|\n)*preprocess again"):
        run.check_dataset()


def test_a_dataset_without_one_sequence_is_refused(make_run):
    run = make_run("training.seq_len=1000000", "model.n_positions=1000000")
    with pytest.raises(DataError, match="expected at least one sequence of 1000000"):
        run.check_dataset()


def test_the_end_names_the_last_weights_and_the_last_numbers(make_run):
    run = make_run()
    finish(run)
    complete(run)
    record = run.manifest.get("train", (run.name, "complete"), "")
    weights = run.manifest.get("train", (run.name, "weights", step_name(12)), "")
    begun = run.manifest.get("train", (run.name, "begin"), "")
    assert (record.inputs, record.config) == ({"weights": weights.content}, begun.config)
    assert record.facts == {
        "steps": 12, "train_loss": 3.0, "validation_loss": 2.0, "perplexity": 7.4, "tokens_per_second": 100.0,
        "promise": "same bits", "metrics": metrics_digest(read_metrics(run.manifest.workspace.metrics(run.name))),
    }  # fmt: skip
    complete(run)  # once more changes nothing
    assert run.manifest.get("train", (run.name, "complete"), "") == record


@pytest.mark.parametrize(
    ("overrides", "changed", "expected"),
    [
        (("training.deterministic=false",), {}, "same batches"),
        ((), {"threads": 2}, "same batches"),
        ((), {"threads": 2, "device": "another"}, "close numbers"),
    ],
)
def test_a_run_that_drifted_or_is_not_deterministic_promises_less(make_run, overrides, changed, expected):
    run = make_run(*overrides)
    facts = begin_facts(run.experiment, run.seed, run.dataset.content, run.numerics() | changed)
    finish(run)
    begun = run.manifest.get("train", (run.name, "begin"), "")
    drift = record_drift(run.manifest, begun, facts, 5, None)
    run.manifest.remove("train", (run.name, "weights", step_name(12)))
    finish(run, **({"drift": drift.content} if drift.content else {}))
    complete(run)
    assert run.manifest.get("train", (run.name, "complete"), "").facts["promise"] == expected


def test_a_run_without_its_last_weights_does_not_end(make_run):
    run = make_run()
    finish(run)
    run.manifest.remove("train", (run.name, "weights", step_name(12)))
    with pytest.raises(ManifestError, match=r"weights/step-00000012.json: found no record"):
        complete(run)
    assert run.manifest.find("train", (run.name, "complete")) is None


def test_the_config_is_kept_beside_the_run_and_written_only_when_it_changed(make_run):
    run = make_run("training.learning_rate=0.5")
    write_config(run)
    path = run.manifest.workspace.run(run.name) / "config.yaml"
    assert yaml.safe_load(path.read_text())["training"]["learning_rate"] == 0.5
    before = path.stat().st_mtime_ns
    write_config(run)
    assert path.stat().st_mtime_ns == before
