"""(seed, purpose, indices ...) -> generator: randomness is a value, nothing is carried from step to step.

A stream is named by integers and words. Its key is the first 128 bits of the sha256 of the names, so that
neighbouring seeds and steps share nothing, and a stream never depends on how often another one was used.
"""

import hashlib

import numpy as np


def stream_key(seed: int, purpose: str, *indices: int | str) -> int:
    """The 128-bit key of a stream."""
    name = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:16], "big")


def generator(seed: int, purpose: str, *indices: int | str) -> np.random.Generator:
    """A NumPy generator (Philox, counter-based) for one stream."""
    return np.random.Generator(np.random.Philox(key=stream_key(seed, purpose, *indices)))


def torch_seed(seed: int, purpose: str, *indices: int | str) -> int:
    """A 63-bit seed for a torch generator."""
    return stream_key(seed, purpose, *indices) >> 65


def seed_dropout(seed: int, step: int, micro_step: int, rank: int) -> None:
    """Seed torch's global generators (CPU and accelerators) for one micro step on one rank.

    The only place of the project that touches global generators: dropout draws from them.
    """
    import torch

    torch.manual_seed(torch_seed(seed, "dropout", step, micro_step, rank))
