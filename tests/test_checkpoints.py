"""A checkpoint is whole or it does not count; a damaged state is passed over; scheduled weights are never removed."""

import json
import resource
import signal
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mistral import checkpoints
from mistral.checkpoints import Checkpoints, read_state
from mistral.config import load_experiment
from mistral.errors import LeaseError, ManifestError, StorageError
from mistral.lease import acquire
from mistral.manifest import Manifest
from mistral.resume import survey
from mistral.sections import Checkpoints as CheckpointsSection
from mistral.setaside import look
from mistral.workspace import Workspace, step_name

RUN = "alias-tiny-x21"
OWNER = {"kind": "local", "host": "node7", "pid": 4711}


@pytest.fixture
def store(manifest):
    with open_store(manifest) as opened:
        yield opened


def open_store(manifest: Manifest, **options: Any) -> Checkpoints:
    lease = acquire(manifest.workspace.run(RUN), OWNER, lambda _: False)
    return Checkpoints(manifest, RUN, "c", "d", lease, **options)


def save_weights(store: Checkpoints, step: int, value: float | None = None) -> None:
    tensors = {"x": torch.full((4,), float(step if value is None else value))}
    store.save_weights(step, tensors, "{}", {"step": step})


def save_state(store: Checkpoints, step: int, size: int = 4) -> None:
    tensors = {
        "param/x": torch.full((size,), float(step)),
        "exp_avg/x": torch.ones(size),
        "exp_avg_sq/x": torch.ones(4),
    }
    store.save_state(step, tensors, {"updates": step, "loss_scale": {}})


def recorded(manifest: Manifest, kind: str) -> list[int]:
    return [int(name[5:]) for name in manifest.names("train", (RUN, kind))]


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_weights_and_a_state_come_back_as_they_were(manifest, store):
    save_weights(store, 2)
    save_state(store, 3)
    store.wait()
    assert load_file(manifest.workspace.weights(RUN, 2) / "model.safetensors")["x"].tolist() == [2.0] * 4
    found = survey(manifest, RUN, ())
    assert (found.state.key[-1], found.damaged) == ("step-00000003", ())
    state = read_state(manifest.workspace.state(RUN, 3))
    assert (state.step, state.updates, state.loss_scale) == (3, 3, {})
    assert {name: value.tolist() for name, value in state.parameters().items()} == {"x": [3.0] * 4}
    assert state.tensor("exp_avg/x").tolist() == [1.0] * 4


def test_a_record_names_what_the_checkpoint_descends_from(manifest, store):
    for step in (0, 2):
        save_weights(store, step)
    save_state(store, 2)
    save_state(store, 3)
    store.wait()
    first, second = (manifest.get("train", (RUN, "weights", step_name(step)), "") for step in (0, 2))
    assert first.inputs == {"dataset": "d"}
    assert second.inputs == {"dataset": "d", "parent": first.content}
    for step in (2, 3):
        assert manifest.get("train", (RUN, "state", step_name(step)), "").inputs["weights"] == second.content


def test_an_error_of_the_background_writer_stops_the_next_step(manifest, store, monkeypatch):
    failed = Event()

    def refuse(*_: object, **__: object) -> None:
        failed.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", refuse)
    save_weights(store, 2)
    assert failed.wait(10)
    with pytest.raises(StorageError, match="No space left on device"):
        for _ in range(1000):  # the future is done a moment after the error
            store.raise_errors()
            failed.clear()
            failed.wait(0.01)
    assert recorded(manifest, "weights") == []
    assert list((manifest.workspace.run(RUN) / "checkpoints").iterdir()) == []


def test_no_state_follows_weights_that_failed(manifest, store, monkeypatch):
    save = checkpoints.save_file

    def refuse_weights(tensors: object, path: Path, **options: object) -> None:
        if path.name == "model.safetensors":
            raise OSError(28, "No space left on device")
        save(tensors, path, **options)

    monkeypatch.setattr(checkpoints, "save_file", refuse_weights)
    save_weights(store, 2)
    with pytest.raises(StorageError):
        save_state(store, 2)
    store.wait()
    assert recorded(manifest, "state") == []


def test_a_state_is_committed_after_the_weights_that_are_being_written(manifest, store, monkeypatch):
    committed = []
    publish = Manifest.publish
    monkeypatch.setattr(Manifest, "publish", lambda self, r: committed.append(r.key[1:]) or publish(self, r))
    for step in (2, 4):
        save_weights(store, step)
        save_state(store, step)
        store.keep_newest_states(1)
    store.wait()
    assert committed == [(kind, step_name(step)) for step in (2, 4) for kind in ("weights", "state")]
    assert recorded(manifest, "state") == [4]


def test_a_full_disk_in_the_middle_of_a_state_leaves_the_one_before_whole(manifest, store):
    save_weights(store, 2)
    save_state(store, 3)
    store.wait()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        save_state(store, 6, size=10_000)
        store.keep_newest_states(1)
        with pytest.raises(StorageError, match=r"cannot write .*step-00000006.*\n.*run the same command again"):
            store.wait()
        store.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    found = survey(manifest, RUN, ())
    assert (found.state.key[-1], found.damaged) == ("step-00000003", ())
    assert [path.name for path in (manifest.workspace.run(RUN) / "state").iterdir()] == ["step-00000003"]


def test_only_temporary_names_of_dead_writers_are_removed(manifest, store):
    save_weights(store, 2)
    save_state(store, 3)
    store.wait()
    run, records = manifest.workspace.run(RUN), manifest.path("train", (RUN, "begin")).parent
    rubbish = [run / "state/.step-00000006.12.ab.tmp"]
    for folder in (*rubbish, run / "checkpoints/step-00000004", run / "state/step-00000006", run / "state/.x.tmp"):
        folder.mkdir()
    files = [run / ".metrics.jsonl.12.ab.tmp", records / ".begin.json.12.ab.tmp", records / "state/.step.json.1.a.tmp"]
    kept = [run / ".lease-00000002.12.ab.tmp", run / "metrics.jsonl", run / "checkpoints/notes"]
    for path in files + kept:
        path.write_text("x")
    before = set(run.rglob("*")) | set(records.rglob("*"))
    store.remove_temporaries()
    assert before - set(run.rglob("*")) - set(records.rglob("*")) == {*rubbish, *files}


def test_an_owner_that_was_superseded_commits_and_removes_nothing(manifest, store):
    save_state(store, 3)
    store.wait()
    with open_store(manifest):
        save_weights(store, 2)
        with pytest.raises(LeaseError, match="another process took this run over"):
            store.wait()
        with pytest.raises(LeaseError):
            store.remove_temporaries()
    assert recorded(manifest, "weights") == []
    assert recorded(manifest, "state") == [3]


def test_work_done_again_must_give_the_same_bits(manifest, store):
    save_weights(store, 2)
    store.wait()
    path = manifest.workspace.weights(RUN, 2) / "model.safetensors"
    before = path.stat()
    save_weights(store, 2)
    store.wait()
    save_weights(store, 2, value=7.0)
    with pytest.raises(ManifestError, match=r"gave another result:\n.*model.safetensors: recorded"):
        store.wait()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_after_a_drift_the_same_bits_keep_their_record(manifest, store):
    save_weights(store, 2)
    store.wait()
    earlier = manifest.get("train", (RUN, "weights", step_name(2)), "")
    with open_store(manifest, drift="f" * 64) as drifted:
        save_weights(drifted, 2)
        save_weights(drifted, 4)
        drifted.wait()
    assert manifest.get("train", earlier.key, "") == earlier
    later = manifest.get("train", (RUN, "weights", step_name(4)), "")
    assert later.inputs == {"dataset": "d", "parent": earlier.content, "drift": "f" * 64}


@pytest.mark.parametrize("changed", [{"deterministic": False}, {"drift": "f" * 64}])
def test_steps_that_may_differ_and_do_are_set_aside_with_all_that_followed(manifest, store, changed):
    for step in (0, 2, 4, 6):
        save_weights(store, step)
    store.wait()
    old = {step: manifest.get("train", (RUN, "weights", step_name(step)), "") for step in (0, 2, 4, 6)}
    with open_store(manifest, **changed) as again:
        save_weights(again, 2)
        save_weights(again, 4, value=7.0)
        again.wait()
        assert recorded(manifest, "weights") == [0, 2, 4]
        save_weights(again, 6, value=8.0)
        again.wait()
    new = manifest.get("train", (RUN, "weights", step_name(4)), "")
    assert new.inputs["parent"] == old[2].content
    assert manifest.get("train", (RUN, "weights", step_name(6)), "").inputs["parent"] == new.content
    aside = {Path(one.origin).name: one for one in look(manifest.workspace, RUN)}
    assert sorted(aside) == ["step-00000004", "step-00000006"]
    for step in (4, 6):
        kept = manifest.workspace.root / aside[step_name(step)].path / "model.safetensors"
        assert load_file(kept)["x"].tolist() == [float(step)] * 4
    [name] = manifest.names("train", (RUN, "set-aside"))
    record = manifest.get("train", (RUN, "set-aside", name), "")
    assert record.inputs == {"weights": old[2].content}
    assert record.facts["weights"] == {step_name(step): old[step].content for step in (4, 6)}


def test_steps_made_again_under_the_same_drift_must_give_the_same_bits(manifest, store):
    with open_store(manifest, drift="f" * 64) as drifted:
        save_weights(drifted, 2)
        drifted.wait()
        save_weights(drifted, 2, value=7.0)
        with pytest.raises(ManifestError, match="gave another result"):
            drifted.wait()
    assert list(look(manifest.workspace, RUN)) == []


def test_the_default_schedule_has_609_steps():
    experiment = load_experiment("gpt2-small")
    steps = experiment.scheduled_steps()
    assert len(steps) == len(set(steps)) == 609
    assert (steps[0], steps[1], steps[-1]) == (0, 10, 400_000)
    assert len(load_experiment("gpt2-medium").scheduled_steps()) == 609


@st.composite
def schedules(draw) -> tuple[CheckpointsSection, int]:
    ends = sorted(draw(st.sets(st.integers(1, 24), min_size=1, max_size=3)))
    parts = [(draw(st.integers(1, end)), end) for end in ends]
    return CheckpointsSection(schedule=tuple(parts), keep_resumable=draw(st.integers(1, 3))), draw(st.integers(1, 24))


@given(schedules())
def test_a_schedule_holds_the_multiples_of_each_part_and_both_ends(case):
    section, last = case
    steps = section.steps(last)
    assert list(steps) == sorted(set(steps))
    expected, start = {0, last}, 0
    for every, until in section.schedule:
        expected |= {step for step in range(start + 1, until + 1) if step % every == 0 and step < last}
        start = until
    assert set(steps) == expected


@settings(max_examples=12)  # each is written to the disk for good
@given(schedules(), st.integers(1, 5))
def test_retention_keeps_the_newest_states_and_never_touches_a_scheduled_step(tmp_path_factory, case, every):
    section, last = case
    manifest = Manifest(Workspace(tmp_path_factory.mktemp("retention")))
    scheduled, states = section.steps(last), []
    with open_store(manifest) as store:
        for step in range(last + 1):
            if step in scheduled:
                save_weights(store, step)
            if step and (step % every == 0 or step == last):
                save_state(store, step)
                store.keep_newest_states(section.keep_resumable)
                states.append(step)
        store.wait()
    assert tuple(recorded(manifest, "weights")) == scheduled
    assert recorded(manifest, "state") == states[-section.keep_resumable :]
    for kind in ("weights", "state"):
        for name in manifest.names("train", (RUN, kind)):
            assert manifest.damage(manifest.get("train", (RUN, kind, name), "")) == []
    folders = {path.name for path in (manifest.workspace.run(RUN) / "state").iterdir()}
    assert folders == set(manifest.names("train", (RUN, "state")))


def test_what_a_record_says_is_what_is_in_the_folder(manifest, store):
    store.save_state(3, {"param/x": torch.ones(2)}, {"updates": 2, "loss_scale": {"cur_scale": 4.0}}, numerics={"a": 1})
    store.wait()
    record = manifest.get("train", (RUN, "state", step_name(3)), "")
    assert [Path(entry.path).name for entry in record.files] == ["state.json", "state.safetensors"]
    assert record.made_by["numerics"] == {"a": 1}
    folder = manifest.workspace.state(RUN, 3)
    assert json.loads((folder / "state.json").read_text()) == {
        "step": 3,
        "updates": 2,
        "loss_scale": {"cur_scale": 4.0},
    }
    assert manifest.damage(replace(record, files=record.files[:1])) == []
