"""a unit's documents -> one stream of tokens per split, each document ended by end-of-text.

Blocks are read in order in one thread; threads parse, split, clean and tokenize them; the results are put together in
order. So the bytes do not depend on the number of threads, and memory is bounded.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from mistral.config import Data
from mistral.corpus import Piece, SourceFile, Unit
from mistral.documents import Bad, Block
from mistral.files import storage_errors
from mistral.ordered import Workers
from mistral.shards import Int64, Tokens, token_dtype
from mistral.splitting import SPLITS, refuse, split_block, unit_blocks
from mistral.tokens import Encoded, Tokenizer

SPILL_BYTES = 192_000_000  # of tokens in memory before they go to a temporary file: more than a unit of 256 MB has
IN_FLIGHT_BYTES = 32_000_000  # of source text between reading and packing
SAMPLES = 64  # documents of a unit that are held against the reference tokenizer, at most: one in 8 MB
LONGEST = 5  # documents that a unit's record tells of


@dataclass(frozen=True)
class Part:
    """Documents of one block that belong to one split, as tokens."""

    encoded: Encoded
    digests: list[bytes]  # sha256 of each document's UTF-8 text
    sizes: list[int]  # bytes of each document's UTF-8 text

    def only(self, numbers: list[int]) -> "Part":
        """Some of its documents."""
        return Part(self.encoded.only(numbers), [self.digests[i] for i in numbers], [self.sizes[i] for i in numbers])


@dataclass(frozen=True)
class Packed:
    """One block, packed."""

    source_bytes: int
    parts: dict[str, Part]
    bad: list[Bad]
    empty: int


@dataclass
class Stream:
    """The tokens of one split of a unit; what exceeds SPILL_BYTES waits in an unnamed temporary file."""

    folder: Path
    dtype: np.dtype[np.uint16] | np.dtype[np.uint32]
    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0

    def __post_init__(self) -> None:
        self._blocks: list[Tokens] = []
        self._starts: list[Int64] = []
        self._held = 0
        self._digest = hashlib.sha256()
        self._spilled = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  closed by close()

    def append(self, part: Part) -> None:
        """Add documents."""
        self._starts.append(part.encoded.starts() + self.tokens)
        self._blocks.append(part.encoded.tokens)
        self._digest.update(b"".join(part.digests))
        self.tokens += len(part.encoded.tokens)
        self.documents += len(part.digests)
        self.text_bytes += sum(part.sizes)
        self._held += part.encoded.tokens.nbytes
        if self._held > SPILL_BYTES:
            self._spill()

    def _spill(self) -> None:
        with storage_errors(self.folder / "unnamed temporary file"):
            for block in self._blocks:
                self._spilled.write(block.data)
        self._blocks, self._held = [], 0

    def blocks(self) -> Iterator[Tokens]:
        """All tokens in order, in blocks."""
        self._spilled.seek(0)
        while raw := self._spilled.read(SPILL_BYTES // 8):
            yield np.frombuffer(raw, dtype=self.dtype)
        yield from self._blocks

    def document_starts(self) -> Int64:
        """(documents,) int64."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *self._starts])

    def facts(self) -> dict[str, int | str | list[int]]:
        """What the unit's record says of this split; `text_sha256` is that of its documents' sha256 in a row."""
        lengths = np.diff(self.document_starts(), append=self.tokens)
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
            "text_sha256": self._digest.hexdigest(),
            "longest": sorted(lengths.tolist(), reverse=True)[:LONGEST],
        }

    def close(self) -> None:
        """Give the memory and the temporary file back."""
        self._blocks, self._starts = [], []
        with suppress(OSError):  # on a full disk: the error of the write that failed is the one to tell
            self._spilled.close()


@dataclass
class Packer:
    """Packs one unit: reads, splits, cleans and tokenizes its documents."""

    data: Data
    tokenizer: Tokenizer
    folder: Path
    workers: Workers = field(default_factory=Workers)
    drops: dict[str, Int64] = field(default_factory=dict)  # of each split, numbers of documents that are left out
    skipped: Counter[str] = field(default_factory=Counter)
    validation_documents: list[dict[str, int | str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        dtype = token_dtype(self.tokenizer.vocabulary_size)
        self.streams = {split: Stream(self.folder, dtype) for split in SPLITS}
        self._sample_every = 1
        self._source = {split: hashlib.sha256() for split in SPLITS}
        self._seen = Counter[str]()  # documents of each split, with those that are left out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory and the temporary files back."""
        for stream in self.streams.values():
            stream.close()

    def pack(self, unit: Unit, files: dict[str, SourceFile], advance: Callable[[int], None]) -> None:
        """Read a unit to its end.

        Args:
            unit: what to read.
            files: where its files are.
            advance: told the bytes of source that were packed since the last call, about; together the unit's.

        Raises:
            DataError: a document cannot be read, and data.on_bad_document is stop; or the fast tokenizer differs from
                the reference.
        """
        left = unit.bytes()
        for block in self.packed_blocks(unit, files):
            self._take(block)
            size = min(left, block.source_bytes)
            left -= size
            advance(size)
        advance(left)

    def source_sha256(self) -> dict[str, str]:
        """Of each split: the sha256 of the sha256 of its documents in a row, as `source_hashes` gives it."""
        return {split: digest.hexdigest() for split, digest in self._source.items()}

    def packed_blocks(self, unit: Unit, files: dict[str, SourceFile]) -> Iterator[Packed]:
        """The blocks of a unit, tokenized, in order."""
        self._sample_every = max(8, (unit.bytes() >> 20) // SAMPLES)  # blocks have about a megabyte
        return self.workers.in_order(
            self._pack,
            enumerate(unit_blocks(self.data, unit, files)),
            weight=lambda item: item[1][1].held_bytes,
            limit=IN_FLIGHT_BYTES,
        )

    def _pack(self, numbered: tuple[int, tuple[Piece, Block]]) -> Packed:
        """What the threads do to a block."""
        number, (piece, block) = numbered
        found = split_block(self.data, piece, block)
        parts: dict[str, Part] = {}
        for split, documents in found.splits.items():
            if documents.texts:
                encoded = self.tokenizer.encode(documents.texts)
                if number % self._sample_every == 0 and not parts:
                    chosen = number * 7919 % len(documents.texts)
                    self.tokenizer.hold_against_reference(documents.texts[chosen], encoded.document(chosen))
                parts[split] = Part(encoded, documents.digests, documents.sizes)
        return Packed(block.source_bytes, parts, found.bad, found.empty)

    def _take(self, packed: Packed) -> None:
        """Add a packed block to the streams; in the order of the source."""
        for bad in packed.bad:
            refuse(self.data, bad)
            self.skipped[bad.reason] += 1
        if packed.empty:
            self.skipped["empty"] += packed.empty
        for split, whole in packed.parts.items():
            self._source[split].update(b"".join(whole.digests))
            part = self._without_dropped(split, whole)
            if split == "validation":
                listed = enumerate(zip(part.digests, part.sizes, strict=True), self.streams[split].documents)
                self.validation_documents += [
                    {"document": number, "sha256": digest.hex(), "bytes": size} for number, (digest, size) in listed
                ]
            self.streams[split].append(part)

    def _without_dropped(self, split: str, part: Part) -> Part:
        """What is left of the documents that come next in a split."""
        first, count = self._seen[split], len(part.digests)
        self._seen[split] += count
        drops = self.drops.get(split, np.zeros(0, dtype=np.int64))
        begin, end = np.searchsorted(drops, (first, first + count))
        if begin == end:
            return part
        self.skipped["duplicate"] += int(end - begin)
        dropped = set((drops[begin:end] - first).tolist())
        return part.only([number for number in range(count) if number not in dropped])
