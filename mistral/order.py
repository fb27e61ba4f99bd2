"""(seed, epoch, position) -> sequence number: a permutation of an epoch that needs no memory and no replay.

Position p of the endless line of epochs lies in epoch p // N, and each epoch visits every one of the N sequences
once. The permutation is a Feistel network over 2^(2h) >= N with cycle walking: a position whose image is N or more is
mapped again until it falls inside (at most 4 rounds on average), which keeps the map one to one. Computing one
position costs the same at step 3 and at step 300,000.

Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002), method 2; the round function is the
64-bit finalizer of SplitMix64 (Steele, Lea, Flood 2014).
"""

import numpy as np
import numpy.typing as npt

from mistral.randomness import generator

ROUNDS = 8
UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]


def sequence_numbers(seed: int, positions: Int64, sequences: int) -> Int64:
    """Which sequence stands at each position.

    Args:
        seed: the run's data seed.
        positions: (n,) int64, counted from 0 over the endless line of epochs.
        sequences: N, the number of sequences of the split, at least 1.

    Returns:
        (n,) int64, each in [0, N).
    """
    result = np.empty_like(positions)
    epochs, within = np.divmod(positions, sequences)
    for epoch in np.unique(epochs):
        of_epoch = epochs == epoch
        result[of_epoch] = permute(within[of_epoch], sequences, round_keys(seed, int(epoch)))
    return result


def round_keys(seed: int, epoch: int) -> UInt64:
    """(ROUNDS,) uint64 keys of one epoch's permutation."""
    # NumPy keeps the raw output of a bit generator for good, that of Generator's methods not (NEP 19).
    raw: UInt64 = generator(seed, "order", epoch).bit_generator.random_raw(ROUNDS)
    return raw


def permute(values: Int64, size: int, keys: UInt64) -> Int64:
    """Map each of `values`, all in [0, size), one to one into [0, size)."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    result = _feistel(values.astype(np.uint64), half_bits, keys)
    outside = result >= size
    while outside.any():
        result[outside] = _feistel(result[outside], half_bits, keys)
        outside = result >= size
    return result.astype(np.int64)


def _feistel(values: UInt64, half_bits: int, keys: UInt64) -> UInt64:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(values: UInt64) -> UInt64:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
