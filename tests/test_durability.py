"""What is recorded survives a power cut: bytes before names, files before records, records gone before their files."""

import json
from pathlib import Path

import pytest
import torch
from disk import Disk

from mistral import files
from mistral.checkpoints import Checkpoints
from mistral.config import load_cluster, load_experiment
from mistral.lease import acquire
from mistral.manifest import make_record
from mistral.progress import Silent
from mistral.setaside import set_aside
from mistral.workspace import Workspace, step_name
from pipeline.context import Context
from pipeline.preprocess import preprocess
from slurm import submissions

RUN = "alias-tiny-x21"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk below `tmp_path/workspace`, which is there and empty."""
    (tmp_path / "workspace").mkdir(exist_ok=True)
    return Disk(tmp_path / "workspace", monkeypatch)


@pytest.mark.parametrize("write", [files.write_bytes, files.publish_bytes])
def test_a_file_is_durable_with_its_folders_when_it_is_written(disk, tmp_path, write):
    for path in (tmp_path / "workspace/new/folder/one", tmp_path / "workspace/new/folder/two"):
        write(path, b"bytes")
        assert disk.survives(path)
    files.write_bytes(path, b"others")
    assert disk.survives(path)
    assert disk.too_early == []


def test_a_record_that_was_withdrawn_does_not_come_back(disk, manifest):
    record = manifest.publish(make_record("train/begin", ("a", "begin"), config="", inputs={}, files=[], facts={}))
    path = manifest.path("train", record.key)
    assert disk.names(path)
    manifest.remove("train", record.key)
    assert not disk.names(path)


def test_a_checkpoint_is_durable_before_its_record_and_its_record_is_gone_before_it(disk, manifest):
    path = manifest.path("train", (RUN, "state", step_name(3)))
    lease = acquire(manifest.workspace.run(RUN), {"kind": "local"}, lambda _: False)
    with Checkpoints(manifest, RUN, "c", "d", lease) as store:
        store.save_weights(3, {"x": torch.ones(4)}, "{}", {"step": 3})
        store.save_state(3, {"param/x": torch.ones(4)}, {"updates": 3, "loss_scale": {}})
        store.wait()
        assert disk.names(path)
        store.save_state(6, {"param/x": torch.ones(4)}, {"updates": 6, "loss_scale": {}})
        store.keep_newest_states(1)
    assert not manifest.workspace.state(RUN, 3).exists()
    assert disk.kinds() == ["train/weights", "train/state", "train/state"]
    assert disk.too_early == []


def test_what_is_set_aside_has_a_durable_note_and_no_record_when_it_moves(disk, manifest):
    lease = acquire(manifest.workspace.run(RUN), {"kind": "local"}, lambda _: False)
    with Checkpoints(manifest, RUN, "c", "d", lease) as store:
        store.save_state(3, {"param/x": torch.ones(4)}, {"updates": 3, "loss_scale": {}})
    record = manifest.get("train", (RUN, "state", step_name(3)), "")
    target = set_aside(manifest, manifest.workspace.state(RUN, 3), manifest.workspace.set_aside(RUN), "why", record)
    assert disk.too_early == []
    assert disk.survives(target.with_name(f"{target.name}.json"))
    assert disk.survives(target / "state.safetensors")


@pytest.mark.parametrize("settings", [(), ("data.deduplicate=exact",)])
def test_a_dataset_is_durable_before_its_records(disk, tiny, settings):
    preprocess(load_experiment(str(tiny / "tiny.yaml"), settings), Workspace(tiny / "workspace"), Silent())
    assert {"preprocess/unit", "preprocess/dataset"} <= set(disk.kinds())
    assert ("preprocess/hashes" in disk.kinds()) == bool(settings)
    assert disk.too_early == []


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_exported_folder_is_durable_before_its_record(trained, disk, dtype):
    trained.train("alias", [0])
    trained.choose(dtype=dtype)
    trained.export(seeds=["alias"], steps=[0])
    assert disk.kinds()[-1] == "export/checkpoint"
    assert [line for line in disk.too_early if "export" in line] == []


def test_what_is_about_to_be_submitted_is_durable(disk, tmp_path):
    experiment, workspace = load_experiment("quickstart"), Workspace(tmp_path / "workspace")
    context = Context(experiment, load_cluster("slurm-a100"), workspace, Silent(), ())
    submission = submissions.create(context, "train", [(0, RUN)], ())
    submission.record(["12"])
    for name in ("submission.json", "experiment.yaml", "cluster.yaml", "job.json"):
        assert disk.survives(submission.folder / name)
    assert json.loads((submission.folder / "job.json").read_bytes()) == {"job": "12"}
