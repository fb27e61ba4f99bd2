"""The promises of mistral/batches.py: a step holds the same sequences for every number of ranks."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mistral.batches import Batches, require_sequences
from mistral.config import Training
from mistral.errors import DataError
from mistral.shards import ShardFacts, TokenStream, locate_tokens, write_shard

SEQ_LEN = 8


def training(**changes: int) -> Training:
    return Training(
        **({"max_steps": 10, "global_batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-3} | changes)
    )


def shard(path: Path, tokens: np.ndarray) -> Path:
    facts = ShardFacts("0" * 64, 50256, "train", path.stem, len(tokens), 1)
    write_shard(path, facts, [tokens.astype("<u2")], np.zeros(1, dtype=np.int64))
    return path


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    """21 sequences, of which number i begins with token i * SEQ_LEN, over three shards and a partial sequence."""
    tokens = np.arange(21 * SEQ_LEN + 3)  # (171,) int64
    parts = np.split(tokens, [50, 51])
    return TokenStream(
        [locate_tokens(shard(tmp_path / f"{number}.h5", part)) for number, part in enumerate(parts)], SEQ_LEN
    )


def step_of(stream: TokenStream, step: int, world_size: int, seed: int = 5) -> list[int]:
    """The sequence numbers of a step, in the order of micro steps and ranks."""
    settings = training()
    numbers = []
    for micro_step in range(settings.accumulation_steps(world_size)):
        for rank in range(world_size):
            rows = Batches(stream, seed, settings, rank, world_size).micro_batch(step, micro_step)
            numbers += (rows[:, 0] // SEQ_LEN).tolist()
    return numbers


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_step_holds_the_same_sequences_for_every_number_of_ranks(stream, world_size):
    for step in (0, 1, 2, 5, 1_000_003):
        assert step_of(stream, step, world_size) == step_of(stream, step, 1)


def test_every_sequence_is_seen_once_an_epoch_though_batches_span_epochs(stream):
    steps = 21  # of 8 sequences: 8 epochs of 21
    seen = [number for step in range(steps) for number in step_of(stream, step, 2)]
    for epoch in range(8):
        assert sorted(seen[epoch * 21 : (epoch + 1) * 21]) == list(range(21))
    assert Counter(seen) == dict.fromkeys(range(21), 8)


def test_a_batch_does_not_depend_on_the_batches_before_it(stream):
    fresh = Batches(stream, 5, training(), 0, 1).micro_batch(7, 1)
    used = Batches(stream, 5, training(), 0, 1)
    for step in range(7):
        used.micro_batch(step, 0)
    assert np.array_equal(used.micro_batch(7, 1), fresh)


def test_two_data_seeds_give_two_orders(stream):
    assert step_of(stream, 0, 1, seed=5) != step_of(stream, 0, 1, seed=6)


def test_a_micro_batch_is_int64_of_micro_batch_by_seq_len(stream):
    rows = Batches(stream, 5, training(), 1, 2).micro_batch(0, 0)
    assert rows.shape == (2, SEQ_LEN)
    assert rows.dtype == np.int64
    assert np.array_equal(rows - rows[:, :1], np.tile(np.arange(SEQ_LEN), (2, 1)))


@pytest.mark.parametrize(("split", "advice"), [("train", "or lower data"), ("validation", "or raise data")])
def test_a_split_without_a_whole_sequence_is_refused_with_its_numbers(tmp_path, split, advice):
    short = TokenStream([locate_tokens(shard(tmp_path / "0.h5", np.arange(7)))], SEQ_LEN)
    message = f"owt-1: found 7 tokens in the {split} split, expected at least one sequence of 8\n.*{advice}"
    with pytest.raises(DataError, match=message):
        require_sequences(short, split, "owt-1")
    with pytest.raises(DataError, match="found 0 tokens"):
        require_sequences(TokenStream([], SEQ_LEN), split, "owt-1")


def test_one_whole_sequence_is_enough(tmp_path):
    require_sequences(TokenStream([locate_tokens(shard(tmp_path / "0.h5", np.arange(8)))], SEQ_LEN), "train", "owt-1")
