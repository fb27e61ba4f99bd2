"""The promises of mistral/manifest.py: records are whole, immutable, and stay inside the workspace."""

import dataclasses
import errno
import json
import os
import random
import signal
import time
from multiprocessing.context import ForkContext
from pathlib import Path
from typing import Any

import pytest
from faults import at, faults
from hypothesis import given
from hypothesis import strategies as st

from mistral.errors import ManifestError, PathError, StorageError
from mistral.files import canonical_json, digest_of, write_bytes
from mistral.manifest import FileEntry, Manifest, Record, make_record, missing, parse_record
from mistral.workspace import Workspace

KEY = ("owt-12345678", "00017")


def record_of(key: tuple[str, ...] = KEY, **changes: Any) -> Record:
    values = {"kind": "preprocess/unit", "config": "c" * 64, "inputs": {}, "files": (), "facts": {"tokens": 7}}
    return make_record(key=key, **(values | changes))


def write_unit(manifest: Manifest, key: tuple[str, ...], data: bytes) -> Record:
    """What a stage does: the file first, the record last."""
    path = manifest.workspace.shard(key[0], "train", key[1])
    write_bytes(path, data)
    return manifest.publish(record_of(key, files=(manifest.entry(path),)))


def edit(path: Path, **changes: Any) -> None:
    path.write_bytes(canonical_json(json.loads(path.read_bytes()) | changes))


# --- whole ------------------------------------------------------------------------------------------------------


def test_a_record_is_never_torn(manifest: Manifest, fork: ForkContext):
    write_unit(manifest, ("owt-0", "99999"), b"")  # what made_by learns is learnt once, before the forks
    chance = random.Random(7)

    def write(attempt: int) -> None:
        for number in range(10_000):
            write_unit(manifest, (f"owt-{attempt}", f"{number:05d}"), os.urandom(20_000))

    for attempt in range(1, 61):
        writer = fork.Process(target=write, args=(attempt,))
        writer.start()
        folder, wanted = (f"owt-{attempt}",), chance.randint(0, 3)  # records first, so that load changes nothing
        end = time.monotonic() + 30
        while len(manifest.names("preprocess", folder)) < wanted and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.01))
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()

    units = [
        (f"owt-{attempt}", name) for attempt in range(61) for name in manifest.names("preprocess", (f"owt-{attempt}",))
    ]
    assert len(units) > 60
    for unit in units:
        record = manifest.find("preprocess", unit)
        assert record is not None
        assert manifest.damage(record) == []
    on_disk = list(manifest.workspace.manifest().rglob("[!.]*.json"))
    assert len(on_disk) == len(units)


def test_a_record_reads_back_as_it_was_written(manifest):
    facts = {"loss": 3.25, "text": "Zoë", "nested": {"list": [1, None, True]}}
    record = record_of(facts=facts, inputs={"dataset": "d" * 64}, files=(FileEntry("data/x", 1, "0" * 64),))
    assert manifest.publish(record) == record
    assert manifest.find("preprocess", KEY) == record


def test_facts_that_would_not_read_back_are_refused(manifest):
    for facts in ({"loss": float("nan")}, {"tokens_of": {2: 1, 10: 1}}):
        with pytest.raises(ValueError):
            record_of(facts=facts)


def test_content_says_what_was_made_and_not_when(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    one, other = record_of(facts={"seconds": 1}), record_of(facts={"seconds": 2}, attempt=3)
    assert one.content == other.content
    assert one.digest != other.digest
    assert one.made_by["slurm_job_id"] == "1"
    assert other.made_by["attempt"] == 3


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "preprocess/seal"},
        {"key": ("owt-12345678", "00018")},
        {"config": "d" * 64},
        {"inputs": {"dataset": "1"}},
        {"files": (FileEntry("data/x", 1, "0" * 64),)},
    ],
)
def test_everything_that_decides_the_result_changes_the_content(change):
    assert record_of(**change).content != record_of().content


def test_content_does_not_depend_on_the_order_of_files():
    entries = [FileEntry(name, 1, "0" * 64) for name in "abc"]
    assert record_of(files=entries).content == record_of(files=entries[::-1]).content


# --- immutable --------------------------------------------------------------------------------------------------


def test_the_same_work_done_twice_keeps_the_first_record(manifest):
    first = manifest.publish(record_of(facts={"seconds": 1}))
    written = manifest.path("preprocess", KEY).read_bytes()
    assert manifest.publish(record_of(facts={"seconds": 2})) == first
    assert manifest.path("preprocess", KEY).read_bytes() == written


def test_another_result_of_the_same_work_is_refused_with_the_difference(manifest):
    entries = [FileEntry(name, 1, digit * 64) for name, digit in (("data/same", "1"), ("data/old", "2"))]
    changed = [entries[0], FileEntry("data/new", 1, "3" * 64)]
    manifest.publish(record_of(files=entries, inputs={"parent": "a" * 64}))
    written = manifest.path("preprocess", KEY).read_bytes()
    with pytest.raises(ManifestError) as caught:
        manifest.publish(record_of(files=changed, inputs={"parent": "b" * 64}, config="d" * 64))
    message = str(caught.value)
    assert "config: recorded cccccccccccc, now dddddddddddd" in message
    assert "input parent: recorded aaaaaaaaaaaa, now bbbbbbbbbbbb" in message
    assert "data/old: recorded 222222222222, now absent" in message
    assert "data/new: recorded absent, now 333333333333" in message
    assert "data/same" not in message
    assert manifest.path("preprocess", KEY).read_bytes() == written


def test_of_many_writers_of_one_unit_one_record_stands(manifest: Manifest, fork: ForkContext, tmp_path: Path):
    record_of()
    start = fork.Event()

    def write(number: int) -> None:
        start.wait()
        stands = manifest.publish(record_of(facts={"writer": number}))
        (tmp_path / f"{number}").write_text(str(stands.facts["writer"]))

    writers = [fork.Process(target=write, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    start.set()
    for writer in writers:
        writer.join()
    record = manifest.find("preprocess", KEY)
    assert record is not None
    assert {(tmp_path / f"{number}").read_text() for number in range(8)} == {str(record.facts["writer"])}


def test_a_record_cannot_be_changed_in_memory():
    with pytest.raises(dataclasses.FrozenInstanceError):
        record_of().config = "x"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"facts": {"tokens": 8}}, "digest does not match"),
        ({"config": "0" * 64}, "digest does not match"),
        ({"created_at": "2001-01-01T00:00:00+00:00"}, "digest does not match"),
        ({"more": 1}, "not a record"),
        ({"files": [{"path": "x"}]}, "not a record"),
        ({"schema": 2, "more": 1}, "found schema 2, expected 1"),
    ],
)
def test_an_edited_record_is_refused(manifest, changes, message):
    manifest.publish(record_of())
    edit(manifest.path("preprocess", KEY), **changes)
    with pytest.raises(ManifestError, match=message):
        manifest.find("preprocess", KEY)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"text"',
        b"{}",
        b"\xff",
        b"[" * 9,
        b"[" * 100_000,
        b"[" * 940 + b"1" + b"]" * 940,
    ],
)
def test_a_file_that_is_no_record_is_refused(manifest, text):
    write_bytes(manifest.path("preprocess", KEY), text)
    with pytest.raises(ManifestError, match=r"00017\.json"):
        manifest.find("preprocess", KEY)


def test_a_record_with_a_number_that_json_has_not_is_refused(manifest):
    manifest.publish(record_of(facts={"loss": 123456}))
    path = manifest.path("preprocess", KEY)
    path.write_bytes(path.read_bytes().replace(b"123456", b"NaN"))
    with pytest.raises(ManifestError, match="not a record"):
        manifest.find("preprocess", KEY)


def test_a_digest_that_was_made_to_fit_does_not_hide_other_content():
    body = record_of().body() | {"config": "0" * 64}
    body["digest"] = digest_of({name: value for name, value in body.items() if name != "digest"})
    with pytest.raises(ManifestError, match="digest does not match"):
        parse_record(body, Path("record.json"))


def test_a_record_in_the_place_of_another_unit_is_refused(manifest):
    manifest.publish(record_of())
    copy = manifest.path("preprocess", ("owt-12345678", "00018"))
    copy.write_bytes(manifest.path("preprocess", KEY).read_bytes())
    with pytest.raises(ManifestError, match="found the record of preprocess/unit"):
        manifest.find("preprocess", ("owt-12345678", "00018"))
    stage = manifest.path("train", KEY)
    write_bytes(stage, copy.read_bytes())
    with pytest.raises(ManifestError, match="found the record of preprocess/unit"):
        manifest.find("train", KEY)


def test_a_folder_where_a_record_should_be_is_named(manifest):
    manifest.path("preprocess", KEY).mkdir(parents=True)
    with pytest.raises(ManifestError, match="Is a directory"):
        manifest.find("preprocess", KEY)


def test_a_record_that_must_exist_is_named_with_the_advice(manifest):
    assert manifest.find("preprocess", KEY) is None
    with pytest.raises(ManifestError, match=r"00017\.json: found no record.*\n  run: mistral-pipeline preprocess x"):
        manifest.get("preprocess", KEY, "run: mistral-pipeline preprocess x")


# --- inside the workspace -----------------------------------------------------------------------------------------


@given(st.lists(st.text(st.characters(), max_size=6) | st.sampled_from(["..", ".", "a/b", "/a", ""]), max_size=4))
def test_no_key_leads_out_of_the_manifest(key):
    manifest = Manifest(Workspace(Path("/tmp/mistral-no-such-workspace")))
    try:
        path = manifest.path("train", tuple(key))
    except PathError:
        return
    assert os.path.normpath(path) == str(path)
    assert path.is_relative_to(manifest.workspace.manifest() / "train")
    assert path.suffix == ".json"


@pytest.mark.parametrize("key", [(), ("",), ("..",), ("../x",), ("/x",), (".hidden",), ("a", "", "b"), ("a\0",)])
def test_a_key_that_is_no_plain_name_is_refused(manifest, key):
    with pytest.raises(PathError):
        manifest.path("train", key)
    if key:
        with pytest.raises(PathError):
            manifest.names("train", key)
    with pytest.raises(PathError):
        manifest.publish(record_of(key))


def test_records_are_not_read_or_written_through_a_link_out_of_the_workspace(manifest, tmp_path):
    (tmp_path / "outside").mkdir()
    manifest.workspace.manifest().mkdir(parents=True)
    (manifest.workspace.manifest() / "preprocess").symlink_to(tmp_path / "outside")
    with pytest.raises(PathError):
        manifest.publish(record_of())
    with pytest.raises(PathError):
        manifest.find("preprocess", KEY)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_file_outside_the_workspace_cannot_be_recorded(manifest, tmp_path):
    manifest.workspace.root.mkdir()
    (tmp_path / "outside").write_bytes(b"x")
    (manifest.workspace.root / "link").symlink_to(tmp_path / "outside")
    for path in (tmp_path / "outside", manifest.workspace.root / ".." / "outside", manifest.workspace.root / "link"):
        with pytest.raises(PathError):
            manifest.entry(path)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "", "link"])
def test_damage_reads_nothing_outside_the_workspace(manifest, tmp_path, path):
    manifest.workspace.root.mkdir()
    (tmp_path / "outside").write_bytes(b"x")
    (manifest.workspace.root / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(PathError, match="workspace"):
        manifest.damage(record_of(files=(FileEntry(path, 1, "0" * 64),)))


# --- work to do ---------------------------------------------------------------------------------------------------

UNITS = st.lists(st.integers(0, 50).map(str), unique=True)


@given(UNITS, UNITS)
def test_work_to_do_is_planned_minus_recorded_in_planned_order(planned, recorded):
    work = missing(planned, recorded)
    assert set(work) == set(planned) - set(recorded)
    assert work == sorted(work, key=planned.index)
    assert missing(planned, [*recorded, *work]) == []


def test_names_lists_finished_units_only(manifest):
    assert manifest.names("preprocess", KEY[:1]) == []
    for unit in ("00018", "00017"):
        manifest.publish(record_of((KEY[0], unit)))
    folder = manifest.path("preprocess", KEY).parent
    (folder / ".00019.json.1.ab.tmp").write_bytes(b"{")
    (folder / ".00020.json").write_bytes(b"{")
    (folder / "notes.txt").write_bytes(b"")
    assert manifest.names("preprocess", KEY[:1]) == ["00017", "00018"]


def test_a_record_may_be_withdrawn_and_made_again(manifest):
    manifest.publish(record_of())
    manifest.remove("preprocess", KEY)
    manifest.remove("preprocess", KEY)
    manifest.remove("preprocess", ("never", "made"))
    assert manifest.find("preprocess", KEY) is None
    assert manifest.publish(record_of(config="d" * 64)).config == "d" * 64


# --- damage -------------------------------------------------------------------------------------------------------


def test_damage_names_each_file_that_is_not_as_it_was_recorded(manifest):
    paths = [manifest.workspace.shard("owt", "train", name) for name in ("good", "flipped", "truncated", "missing")]
    for path in paths:
        write_bytes(path, b"0123456789")
    record = record_of(files=[manifest.entry(path) for path in paths])
    assert manifest.damage(record) == []
    paths[1].write_bytes(b"0123456788")
    paths[2].write_bytes(b"012345678")
    paths[3].unlink()
    flipped, lost, truncated = manifest.damage(record)
    assert flipped.startswith("data/owt/train/flipped.h5: found sha256")
    assert lost == "data/owt/train/missing.h5: No such file or directory, expected 10 bytes"
    assert truncated == "data/owt/train/truncated.h5: found 9 bytes, expected 10"


def test_a_quick_look_compares_sizes_only(manifest):
    record = write_unit(manifest, KEY, b"0123456789")
    path = manifest.workspace.shard(KEY[0], "train", KEY[1])
    path.write_bytes(b"9999999999")
    assert manifest.damage(record, quick=True) == []
    assert len(manifest.damage(record)) == 1
    path.write_bytes(b"9")
    assert len(manifest.damage(record, quick=True)) == 1


def test_a_folder_in_the_place_of_a_file_is_damage(manifest):
    path = manifest.workspace.root / "data"
    path.mkdir(parents=True)
    [problem] = manifest.damage(record_of(files=(FileEntry("data", path.stat().st_size, "0" * 64),)))
    assert "Is a directory" in problem


UNKNOWN = pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE], ids=errno.errorcode.get)


@UNKNOWN
@pytest.mark.parametrize("event", ["open", "stat", "lstat"])
def test_a_file_that_cannot_be_read_is_an_error_and_no_damage(manifest, code, event):
    record = write_unit(manifest, KEY, b"0123456789")
    message = rf"cannot read .*00017\.h5: .* \({errno.errorcode[code]}\)(.|\n)*nothing was changed"
    with faults(at(event, code, "00017.h5")), pytest.raises(StorageError, match=message):
        manifest.damage(record)
    assert manifest.damage(record) == []


@UNKNOWN
def test_a_record_that_cannot_be_read_is_an_error_and_not_absent(manifest, code):
    record = write_unit(manifest, KEY, b"0123456789")
    with faults(at("open", code, "00017.json")), pytest.raises(StorageError, match=errno.errorcode[code]):
        manifest.find("preprocess", KEY)
    with faults(at("scandir", code, KEY[0])), pytest.raises(StorageError, match=errno.errorcode[code]):
        manifest.names("preprocess", KEY[:1])
    assert manifest.find("preprocess", KEY) == record
