"""The promises of mistral/files.py: whole or absent, never overwritten, one form for one value."""

import errno
import json
import math
import os
import signal
import subprocess
import time
from multiprocessing.context import ForkContext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral import files
from mistral.errors import StorageError

TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(TEXT, JSON, min_size=2), st.randoms(use_true_random=False))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert files.canonical_json(dict(items)) == files.canonical_json(value)


@given(JSON)
def test_canonical_json_is_the_same_after_a_round_trip(value):
    written = files.canonical_json(value)
    assert files.canonical_json(json.loads(written)) == written


@given(JSON, JSON)
def test_two_values_have_one_digest_only_if_they_are_one_value(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (files.digest_of(one) == files.digest_of(other)) == same


def test_canonical_json_is_frozen():
    assert files.canonical_json({"b": [1, 2.5, None], "a": "ä"}) == '{"a":"ä","b":[1,2.5,null]}'.encode()
    assert files.digest_of({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        files.canonical_json({"loss": [value]})


@pytest.mark.parametrize("value", [{2: 1, 10: 1}, {"a": [{None: 1}]}, ({True: 1},)])
def test_a_key_that_json_would_change_is_refused(value):
    with pytest.raises(ValueError, match="expected text"):
        files.canonical_json(value)


def test_publishing_never_overwrites(tmp_path):
    path = tmp_path / "new" / "folder" / "record"
    assert files.publish_bytes(path, b"first") is True
    assert files.publish_bytes(path, b"second") is False
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in path.parent.iterdir()] == ["record"]


def test_a_link_whose_answer_was_lost_counts_as_ours(tmp_path, monkeypatch):
    link = os.link

    def link_and_lose_the_answer(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")  # an NFS client that sent the request twice

    monkeypatch.setattr(os, "link", link_and_lose_the_answer)
    assert files.publish_bytes(tmp_path / "record", b"ours") is True


def test_a_reader_never_sees_a_part_of_a_file_that_is_replaced(tmp_path: Path, fork: ForkContext):
    path = tmp_path / "file"
    versions = [bytes([number]) * 100_000 for number in range(4)]
    files.write_bytes(path, versions[0])

    def write() -> None:
        while True:
            for version in versions:
                files.write_bytes(path, version)

    writer = fork.Process(target=write, daemon=True)
    writer.start()
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        assert path.read_bytes() in versions
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    assert path.read_bytes() in versions


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "file"
    files.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), files.written_beside(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_named_with_the_file_and_the_room_left():
    message = r"shard\.h5: No space left on device .* MB free[^\n]*\n  make room"
    with pytest.raises(StorageError, match=message), files.storage_errors(Path("/tmp/nowhere/shard.h5")):
        Path("/dev/full").write_bytes(b"x")


def test_a_library_that_hides_a_full_disk_in_its_own_exception_is_understood():
    with pytest.raises(StorageError, match="make room"), files.storage_errors(Path("/tmp/x")):
        raise RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)")


def test_a_path_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="check the path"):
        files.write_bytes(tmp_path / "file" / "below", b"")


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert files.sha256_of(tmp_path / "file").startswith("ba7816bf")


def test_removing_a_folder_twice_is_fine(tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    files.remove_folder(tmp_path / "folder")
    files.remove_folder(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.skipif(
    os.geteuid() != 0 and os.environ.get("CI") != "true",  # where it fails instead
    reason="only root can mount the small file system that this test fills",
)
def test_a_full_table_of_inodes_is_told_as_such_though_bytes_are_free(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=6", "tmpfs", str(tmp_path)], check=True)
    try:
        with pytest.raises(StorageError, match=r"none of its 6 inodes(.|\n)*get more inodes \(df -i") as full:
            for number in range(9):
                files.write_bytes(tmp_path / str(number), b"")
        assert "4.2 MB free on its file system" in str(full.value)
        (tmp_path / "0").unlink()
        with pytest.raises(StorageError, match="make room, then run the same command again"):
            files.write_bytes(tmp_path / "1", bytes(8_000_000))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
