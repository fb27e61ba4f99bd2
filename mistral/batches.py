"""shards -> (micro_batch, seq_len) int64 batches: a pure function of (data seed, step, micro step, rank).

Step s of global batch G holds positions s*G ... s*G+G-1 of the endless line of epochs. Micro step m on rank r of R
takes positions s*G + m*B*R + r*B ... + B-1, so a step holds the same sequences for every number of ranks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mistral.config import Training
from mistral.errors import DataError
from mistral.order import sequence_numbers
from mistral.shards import TokenStream

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batches:
    """The training batches of one run, as one rank sees them."""

    stream: TokenStream
    seed: int
    training: Training
    rank: int
    world_size: int

    def positions(self, step: int, micro_step: int) -> Int64:
        """(micro_batch,) int64 positions on the line of epochs."""
        size = self.training.micro_batch_size
        first = step * self.training.global_batch_size + (micro_step * self.world_size + self.rank) * size
        return np.arange(first, first + size, dtype=np.int64)

    def micro_batch(self, step: int, micro_step: int) -> Int64:
        """(micro_batch, seq_len) int64 token ids."""
        return self.stream.read(sequence_numbers(self.seed, self.positions(step, micro_step), len(self.stream)))


def require_sequences(stream: TokenStream, split: str, dataset: str) -> None:
    """Refuse a split that holds no whole sequence.

    Raises:
        DataError: says how many tokens there are and how many one sequence takes.
    """
    if not len(stream):
        tokens = sum(shard.tokens for shard in stream.shards)
        raise DataError(
            f"{dataset}: found {tokens} tokens in the {split} split, expected at least one sequence of "
            f"{stream.seq_len}\n  give it more text, shorten training.seq_len"
            + (
                ", or raise data.validation_fraction"
                if split == "validation"
                else ", or lower data.validation_fraction"
            )
        )
