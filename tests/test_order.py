"""The promises of mistral/order.py: each epoch is a permutation, at the same cost everywhere, and never changes."""

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral import order
from mistral.order import sequence_numbers

NEAR_POWERS_OF_TWO = [2**n + d for n in range(2, 15) for d in (-1, 0, 1)]
SIZES = st.sampled_from([1, 2, 3, *NEAR_POWERS_OF_TWO]) | st.integers(1, 5000)
SEEDS = st.integers(0, 2**63 - 1)


def epoch_of(seed: int, epoch: int, size: int) -> np.ndarray:
    return sequence_numbers(seed, np.arange(epoch * size, (epoch + 1) * size), size)  # (size,) int64


def test_the_order_is_frozen():
    """Values of version 0.1.0: another order would break the promise of every run that was ever begun."""
    first = np.arange(12)
    assert sequence_numbers(21, first, 5).tolist() == [1, 2, 0, 3, 4, 2, 4, 1, 0, 3, 0, 3]
    assert sequence_numbers(21, first, 1000).tolist() == [260, 718, 928, 598, 988, 113, 339, 135, 626, 938, 664, 994]
    assert sequence_numbers(49, first, 1000).tolist() == [281, 695, 223, 684, 107, 550, 598, 593, 27, 382, 205, 868]
    far = np.array([0, 10**12, 2**62])
    assert sequence_numbers(777, far, 9_000_000_007).tolist() == [7825822901, 8906626694, 554483134]
    assert order.round_keys(21, 3)[:2].tolist() == [3091314017070274110, 17442597827952408960]


def test_the_page_of_formats_tells_the_order_for_readers_in_other_languages():
    page = (Path(__file__).parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")
    section = page.partition("\n## Order\n")[2].partition("\n## ")[0]
    [code] = re.findall(r"^    from hashlib .*?(?=^\S)", section, flags=re.M | re.S)
    told: dict[str, Any] = {}
    exec(compile(textwrap.dedent(code), "docs/formats.md", "exec"), told)
    for seed, size in ((21, 1000), (49, 1), (49, 2), (777, 9_000_000_007), (2**63 - 1, 8_823_529)):
        positions = [*range(30), size, 3 * size + 1, 10**12, 2**62]
        expected = sequence_numbers(seed, np.array(positions), size).tolist()
        assert [told["sequence_number"](seed, position, size) for position in positions] == expected
    example = [told["sequence_number"](21, position, 1000) for position in range(6)]
    assert ", ".join(map(str, example)) in " ".join(section.split())


@given(SEEDS, st.integers(0, 10**9), SIZES)
def test_every_sequence_is_seen_once_an_epoch(seed, epoch, size):
    assert np.array_equal(np.sort(epoch_of(seed, epoch, size)), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, *NEAR_POWERS_OF_TWO])
def test_every_size_around_a_power_of_two_is_a_permutation(size):
    assert np.array_equal(np.sort(epoch_of(7, 0, size)), np.arange(size))


@given(SEEDS, SEEDS, st.integers(0, 1000), st.integers(0, 1000))
def test_epochs_and_seeds_differ(seed, other_seed, epoch, other_epoch):
    same = np.array_equal(epoch_of(seed, epoch, 200), epoch_of(other_seed, other_epoch, 200))
    assert same == ((seed, epoch) == (other_seed, other_epoch))


@given(SEEDS, st.lists(st.integers(0, 10**15), max_size=30), st.integers(1, 10**10))
@settings(max_examples=50)
def test_a_position_does_not_depend_on_what_is_asked_with_it(seed, positions, size):
    together = sequence_numbers(seed, np.array(positions, dtype=np.int64), size)
    alone = [sequence_numbers(seed, np.array([position]), size)[0] for position in positions]
    assert together.tolist() == alone
    assert together.dtype == np.int64
    assert ((together >= 0) & (together < size)).all()


def work_at(position: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Values that went through the network to answer for 1000 positions."""
    mapped, feistel = [], order._feistel

    def counted(values, *rest):
        mapped.append(len(values))
        return feistel(values, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(order, "_feistel", counted)
        sequence_numbers(21, np.arange(position, position + 1000), 10**7)
    return sum(mapped)


def test_the_trillionth_position_costs_what_the_first_costs(monkeypatch):
    first, late = work_at(0, monkeypatch), work_at(10**12, monkeypatch)
    assert first <= 4.5 * 1000
    assert late <= 1.2 * first


@pytest.mark.parametrize("size", [3, 7, 16, 17, 100])
def test_every_sequence_is_as_likely_at_every_place(size):
    epochs = 3000
    counts = np.zeros((size, size))
    for epoch in range(epochs):
        counts[np.arange(size), epoch_of(5, epoch, size)] += 1
    chi_square = ((counts - epochs / size) ** 2).sum() / (epochs / size)
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 6 * np.sqrt(2 * freedom)


def test_neighbours_do_not_stay_neighbours():
    numbers = epoch_of(3, 0, 10_000)
    assert (np.abs(np.diff(numbers)) == 1).sum() < 20  # 2 are expected of a random order
    assert abs(np.corrcoef(np.arange(10_000), numbers)[0, 1]) < 0.05
