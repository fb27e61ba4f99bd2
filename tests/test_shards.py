"""The promises of mistral/shards.py: real HDF5, one contiguous run, the same bytes for the same tokens."""

import pickle
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral.errors import DataError
from mistral.files import sha256_of
from mistral.shards import (
    ShardFacts,
    TokenStream,
    locate_tokens,
    read_document_starts,
    read_facts,
    token_dtype,
    write_shard,
)


def write(path: Path, tokens: np.ndarray, blocks: int = 1, unit: str = "00000") -> Path:
    facts = ShardFacts("ab" * 32, 50256, "train", unit, len(tokens), 2)
    write_shard(path, facts, np.array_split(tokens, blocks), np.array([0, 3], dtype=np.int64))
    return path


@pytest.mark.parametrize("kind", ["<u2", "<u4"])
def test_a_shard_gives_back_what_was_written(tmp_path, kind):
    tokens = np.arange(60_000, 60_000 + 5_000).astype(kind)  # (5000,)
    path = write(tmp_path / "00000.h5", tokens, blocks=7)
    assert read_facts(path) == ShardFacts("ab" * 32, 50256, "train", "00000", 5_000, 2)
    assert read_document_starts(path).tolist() == [0, 3]
    shard = locate_tokens(path)
    assert shard.dtype == kind
    assert np.array_equal(shard.map(), tokens)


def test_other_programs_read_the_documented_format(tmp_path):
    path = write(tmp_path / "00000.h5", np.arange(10, dtype="<u2"))
    with h5py.File(path) as file:
        assert set(file) == {"tokens", "document_starts"}
        assert (file["tokens"].chunks, file["tokens"].compression) == (None, None)
        assert file["document_starts"].dtype == np.dtype("<i8")
        assert set(file.attrs) == set(ShardFacts.__dataclass_fields__)


def test_a_shard_has_the_same_bytes_at_another_time_and_in_other_blocks(tmp_path):
    tokens = np.arange(100_000, dtype="<u2")
    first = sha256_of(write(tmp_path / "a.h5", tokens))
    time.sleep(1.1)  # HDF5 would store whole seconds
    assert sha256_of(write(tmp_path / "b.h5", tokens, blocks=9)) == first


def test_a_failed_write_leaves_no_file(tmp_path):
    def blocks():
        yield np.zeros(3, dtype="<u2")
        raise DataError("the source is damaged")

    with pytest.raises(DataError, match="damaged"):
        write_shard(tmp_path / "a.h5", ShardFacts("", 0, "train", "a", 6, 1), blocks(), np.zeros(1, dtype=np.int64))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_shard_is_refused_by_name(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"a\.h5: found no readable shard"):
        locate_tokens(tmp_path / "a.h5")
    path = write(tmp_path / "b.h5", np.zeros(9, dtype="<u2"))
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(DataError, match="found format version 2, expected 1"):
        locate_tokens(path)


def test_a_chunked_dataset_is_refused(tmp_path):
    path = write(tmp_path / "a.h5", np.zeros(9, dtype="<u2"))
    with h5py.File(path, "a") as file:
        del file["tokens"]
        file.create_dataset("tokens", data=np.zeros(9, dtype="<u2"), chunks=(3,))
    with pytest.raises(DataError, match="chunked or compressed"):
        locate_tokens(path)


def test_the_smallest_type_holds_every_id():
    assert token_dtype(65_535) == np.dtype("<u2")
    assert token_dtype(65_537) == np.dtype("<u4")


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), seq_len=st.integers(1, 50))
def test_a_stream_drops_nothing_but_the_last_partial_sequence(tmp_path_factory, sizes, seq_len):
    folder = tmp_path_factory.mktemp("stream")
    tokens = np.arange(sum(sizes), dtype="<u2")
    parts = np.split(tokens, np.cumsum(sizes)[:-1])
    stream = TokenStream([locate_tokens(write(folder / f"{i}.h5", part)) for i, part in enumerate(parts)], seq_len)
    count = len(tokens) // seq_len
    assert len(stream) == count
    rows = stream.read(np.arange(count))
    assert rows.dtype == np.int64
    assert np.array_equal(rows, tokens[: count * seq_len].reshape(count, seq_len))


def test_a_stream_crosses_to_another_process_without_its_data(tmp_path):
    stream = TokenStream([locate_tokens(write(tmp_path / "a.h5", np.arange(50_000, dtype="<u2")))], 100)
    rows = stream.read(np.array([3]))
    packed = pickle.dumps(stream)
    assert len(packed) < 2_000
    assert np.array_equal(pickle.loads(packed).read(np.array([3])), rows)
