"""token ids <-> HDF5 shards: one contiguous, uncompressed dataset per file, which readers map into memory.

`tokens` is 1-D, little-endian, uint16 (uint32 if the vocabulary has more than 65,535 ids); `document_starts` is 1-D
int64, counted within the shard. docs/formats.md has the whole format.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from mistral.errors import DataError
from mistral.files import written_beside

FORMAT_VERSION = 1
Tokens = npt.NDArray[Any]  # uint16 or uint32
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShardFacts:
    """The attributes of a shard."""

    tokenizer_sha256: str
    end_of_text_id: int
    split: str
    unit: str
    tokens: int
    documents: int
    format_version: int = FORMAT_VERSION


def token_dtype(vocabulary_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """The smallest little-endian type that holds every id."""
    return np.dtype("<u2") if vocabulary_size <= 65_535 else np.dtype("<u4")


def write_shard(path: Path, facts: ShardFacts, blocks: Iterable[Tokens], document_starts: Int64) -> None:
    """Write a shard as a whole or not at all.

    Args:
        path: where it will stand.
        facts: its attributes; `facts.tokens` is the sum of the blocks' lengths.
        blocks: token ids in order, each (n,) of one dtype.
        document_starts: (documents,) int64, ascending, index of each document's first token.

    Raises:
        StorageError: the disk is full.
    """
    with written_beside(path) as temporary, h5py.File(temporary, "w", libver="v110") as file:
        start, tokens = 0, None
        for block in blocks:
            if tokens is None:
                tokens = file.create_dataset("tokens", shape=(facts.tokens,), dtype=block.dtype.newbyteorder("<"))
            tokens[start : start + len(block)] = block
            start += len(block)
        file.create_dataset("document_starts", data=document_starts.astype("<i8"))
        for name, value in vars(facts).items():
            file.attrs[name] = value


@dataclass(frozen=True)
class MappedShard:
    """Where a shard's tokens lie in its file: picklable, and opened anew in each process that reads it."""

    path: Path
    offset: int
    tokens: int
    dtype: str

    def map(self) -> Tokens:
        """(tokens,) read-only view of the file's bytes; nothing is read until it is used."""
        mapped = np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=(self.tokens,))
        return mapped.view(np.ndarray)


def locate_tokens(path: Path) -> MappedShard:
    """Find a shard's tokens for mapped reading.

    Raises:
        DataError: the file is no shard of this format.
    """
    facts = read_facts(path)
    with h5py.File(path, "r", locking=False) as file:
        tokens = file["tokens"]
        offset = tokens.id.get_offset()
        if offset is None or tokens.shape != (facts.tokens,):
            raise DataError(
                f"{path}: found tokens of shape {tokens.shape}, chunked or compressed, expected one contiguous run of "
                f"{facts.tokens}; preprocess the unit again"
            )
        return MappedShard(path, offset, facts.tokens, tokens.dtype.str)


def read_facts(path: Path) -> ShardFacts:
    """The attributes of a shard.

    Raises:
        DataError: the file is no shard of this format.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            values = {name: file.attrs[name] for name in ShardFacts.__dataclass_fields__}
    except (OSError, KeyError) as error:
        raise DataError(f"{path}: found no readable shard ({error}); run verify, then preprocess again") from None
    facts = ShardFacts(
        tokenizer_sha256=str(values["tokenizer_sha256"]),
        end_of_text_id=int(values["end_of_text_id"]),
        split=str(values["split"]),
        unit=str(values["unit"]),
        tokens=int(values["tokens"]),
        documents=int(values["documents"]),
        format_version=int(values["format_version"]),
    )
    if facts.format_version != FORMAT_VERSION:
        raise DataError(
            f"{path}: found format version {facts.format_version}, expected {FORMAT_VERSION}; preprocess again"
        )
    return facts


def read_document_starts(path: Path) -> Int64:
    """(documents,) int64: index of each document's first token."""
    with h5py.File(path, "r", locking=False) as file:
        starts: Int64 = file["document_starts"][:]
    return starts


@dataclass
class TokenStream:
    """The logical token stream of a split, cut into sequences of `seq_len` tokens.

    Sequence i is tokens [i*L, (i+1)*L) of the stream, wherever the shard boundaries fall; only the last partial
    sequence is dropped. Files are mapped when they are first read, in the process that reads them.
    """

    shards: Sequence[MappedShard]
    seq_len: int

    def __post_init__(self) -> None:
        self._ends = list(itertools.accumulate(shard.tokens for shard in self.shards))
        self._maps: dict[int, Tokens] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_maps": {}}  # a map would pickle its data

    def __len__(self) -> int:
        """Number of whole sequences."""
        return self._ends[-1] // self.seq_len if self._ends else 0

    def read(self, numbers: Int64) -> Int64:
        """Read sequences by number.

        Args:
            numbers: (n,) int64, each in [0, len(self)).

        Returns:
            (n, seq_len) int64.
        """
        rows = np.empty((len(numbers), self.seq_len), dtype=np.int64)
        for row, number in zip(rows, numbers.tolist(), strict=True):
            self._fill(row, number * self.seq_len)
        return rows

    def _fill(self, row: Int64, start: int) -> None:
        """Copy the tokens from `start` of the stream on into a row, shard by shard."""
        shard = bisect_right(self._ends, start)
        within = start - self._ends[shard] + self.shards[shard].tokens
        while len(row):
            piece = self._map(shard)[within : within + len(row)]
            row[: len(piece)] = piece
            row, shard, within = row[len(piece) :], shard + 1, 0

    def _map(self, shard: int) -> Tokens:
        if shard not in self._maps:
            self._maps[shard] = self.shards[shard].map()
        return self._maps[shard]
